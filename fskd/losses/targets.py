"""Losses on logits: hard labels, soft targets and their mixtures. The readable definitions.

``fused`` computes the same faster. All take ``(student, teacher, ...)`` in that order, compute in
at least float32 and return the mean over rows as a scalar in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 if it has less precision; float64 stays float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cross_entropy(
    student: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Mean cross-entropy with hard labels, optionally smoothed over the wrong classes.

    With smoothing e the target is 1-e on the label and e/(K-1) on every other class (Szegedy et
    al., CVPR 2016, arXiv 1512.00567, in the form of Yuan et al., arXiv 1909.11723; torch spreads e
    over all K classes instead).

    Args:
        student: Logits.
        targets: Classes in [0, K).
        label_smoothing: e in [0, 1).

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item()  # log 4
        1.3862943649291992
    """
    student = at_least_float32(student)
    if label_smoothing == 0.0:
        return F.cross_entropy(student, targets)
    classes = student.shape[1]
    # torch's e' puts e'/K on every class, so e' = e*K/(K-1) gives e/(K-1) on each wrong one.
    return F.cross_entropy(
        student, targets, label_smoothing=label_smoothing * classes / (classes - 1)
    )


def soft_cross_entropy(
    student: Float[Tensor, "batch classes"], probs: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean of -sum_c probs_c log softmax(student)_c.

    Args:
        student: Logits.
        probs: Target distributions, rows sum to 1.
    """
    log_q = F.log_softmax(at_least_float32(student), dim=1)
    return -(probs * log_q).sum(1).mean()


def kl_divergence(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    r"""Softened KL divergence, T^2 * mean_b KL(softmax(t/T) || softmax(s/T)).

    Hinton et al., 2015, arXiv 1503.02531. The sum over classes is averaged over rows only, and T^2
    keeps the gradient's scale. The teacher is treated as constant.

    Args:
        student: Logits.
        teacher: Logits.
        temperature: T > 0.

    Example:
        >>> z = torch.tensor([[1.0, 2.0, 3.0]])
        >>> kl_divergence(z, z).item()
        0.0
    """
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=1)
    log_p = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def mixed_cross_entropy(
    student: Float[Tensor, "batch classes"],
    targets: Int[Tensor, "batch parents"],
    weights: Float[Tensor, "batch parents"],
) -> Float[Tensor, ""]:
    """Cross-entropy of mixed rows: mean_b sum_j weights_bj CE(student_b, targets_bj).

    Zhang et al., *mixup*, ICLR 2018, arXiv 1710.09412.

    Args:
        student: Logits of the mixed rows.
        targets: Class of each parent.
        weights: Share of each parent, rows sum to 1.
    """
    log_q = F.log_softmax(at_least_float32(student), dim=1)
    return -(log_q.gather(1, targets) * weights).sum(1).mean()


def logits_mse(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean over rows and classes of the squared logit difference.

    Ba and Caruana, *Do Deep Nets Really Need to be Deep?*, NeurIPS 2014, arXiv 1312.6184.
    """
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher.detach()))


IGNORED = -100  # the label of rows that have none, as in torch


def kd_objective(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    targets: Int[Tensor, " real"] | Float[Tensor, "real classes"] | None = None,
    *,
    temperature: float = 4.0,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    generated_weight: float = 1.0,
    label_smoothing: float = 0.0,
    row_weights: Float[Tensor, " rows"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy plus softened KL on real rows, softened KL on generated rows: the definition.

    ``fused.kd_loss`` is the same and describes the arguments.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    n_rows, n_classes = student.shape
    n_real = n_rows if targets is None else len(targets)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    p = log_p.exp()
    # A class that is switched off in both is 0 * (inf - inf), which the limit makes 0.
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1) * temperature**2
    soft = torch.cat(
        (kl.new_full((n_real,), kd_weight), kl.new_full((n_rows - n_real,), generated_weight))
    )
    if reduction == "mean":
        soft = torch.cat((soft[:n_real] / n_real, soft[n_real:] / max(n_rows - n_real, 1)))
    factors = torch.ones_like(kl) if row_weights is None else row_weights.detach().to(kl.dtype)
    losses = soft * factors * kl
    if targets is not None and ce_weight > 0:
        log_q = F.log_softmax(student[:n_real], dim=1)
        known = torch.ones_like(kl[:n_real])
        if targets.is_floating_point():
            ce = -torch.where(targets > 0, targets * log_q, 0.0).sum(1)
        else:
            labelled = targets != IGNORED
            known = labelled.to(kl.dtype)
            label = targets.long().masked_fill(~labelled, 0).unsqueeze(1)
            on, off = 1.0 - label_smoothing, label_smoothing / (n_classes - 1)
            ce = (off - on) * log_q.gather(1, label).squeeze(1)
            if label_smoothing:
                ce = ce - off * log_q.sum(1)
            ce = torch.where(labelled, ce, 0.0)
        divisor = known.sum().clamp(min=1.0) if reduction == "mean" else 1.0
        ce = ce_weight * factors[:n_real] * known * ce / divisor
        losses = torch.cat((losses[:n_real] + ce, losses[n_real:]))
    return losses if reduction == "none" else losses.sum()
