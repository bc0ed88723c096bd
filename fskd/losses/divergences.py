"""Other ways to compare student and teacher: decoupled KD, reverse KL, Jensen-Shannon.

Each is its readable definition, at the end of this file, or the same by ``fused_divergences``,
which takes the gradient in closed form.
"""

import math
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fskd.losses.fused.autograd import is_traced
from fskd.losses.fused.checks import check_labels
from fskd.losses.fused.divergences import Divergence, FusedDivergence, Impl, compute
from fskd.losses.targets import IGNORED, at_least_float32

# Not Impl.__args__ where it is read: torch 2.4 cannot follow that into a compiler.
IMPLS = get_args(Impl)


def dkd_loss(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"],
    temperature: float = 4.0,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, ""]:
    r"""Decoupled KD: the label against the rest, and the rest among themselves, weighted apart.

    L = T^2 * mean_b (target_weight * KL([p_y, 1-p_y] || [q_y, 1-q_y])
    + non_target_weight * KL(p^ || q^)), in nats, with p = softmax(t/T), q = softmax(s/T), and p^,
    q^ the same without the label y. The label term and the warm-up of the paper are not included.

    Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, arXiv 2203.08679. Differences from
    the published code: the label is taken out exactly, not by subtracting 1000 from its logit, and
    the binary term stays finite where the teacher or the student is certain. With two classes the
    second term is 0.

    Args:
        student: Logits; -inf in both switches a class off. One class beside the label must be on.
        teacher: Logits, constant.
        targets: Classes in [0, C), -100 for rows that do not count; the mean is over the others.
        temperature: T > 0.
        target_weight: Weight of the binary term, alpha in the paper, at least 0.
        non_target_weight: Weight of the other term, beta in the paper, at least 0.
        impl: ``reference``, ``eager`` (fused), or ``auto``, the fused one wherever it can be used.

    Returns:
        Scalar in at least float32.

    Raises:
        ValueError: If shapes, settings or labels do not fit. Labels on a GPU are looked at under
            ``torch.autograd.detect_anomaly`` only, because that waits for it.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]])
        >>> round(dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0).item(), 4)
        1.1166
    """
    kind = Divergence("dkd_loss", temperature, target_weight, non_target_weight)
    if _fusing(student, teacher, targets, kind, impl):
        return _fused(student, teacher, targets, kind)
    return _dkd(student, teacher, targets, kind)


def reverse_kl(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, ""]:
    r"""Reverse softened KL, T^2 * mean_b KL(softmax(s/T) || softmax(t/T)), in nats.

    Seeks a mode of the teacher where the usual direction covers all. Gu et al., *MiniLLM*, ICLR
    2024, arXiv 2306.08543, here for one class per row.

    Args:
        student: Logits; -inf in both switches a class off.
        teacher: Logits, constant. The loss is infinite where it alone switches a class off.
        temperature: T > 0.
        impl: As in ``dkd_loss``.

    Returns:
        Scalar in at least float32.

    Raises:
        ValueError: If shapes or settings do not fit.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
        >>> round(reverse_kl(student, teacher, temperature=1.0).item(), 4)
        0.4338
    """
    kind = Divergence("reverse_kl", temperature)
    if _fusing(student, teacher, None, kind, impl):
        return _fused(student, teacher, None, kind)
    return _reverse_kl(student, teacher, temperature)


def jensen_shannon(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
    *,
    impl: Impl = "auto",
) -> Float[Tensor, ""]:
    r"""Softened Jensen-Shannon divergence, T^2 * mean_b (KL(p || m) + KL(q || m))/2, in nats.

    p = softmax(t/T), q = softmax(s/T), m = (p + q)/2. Symmetric, and at most T^2 log 2 (Lin,
    *Divergence measures based on the Shannon entropy*, IEEE Trans. Inf. Theory 37, 1991).

    Args:
        student: Logits; -inf switches a class off, in either.
        teacher: Logits, constant.
        temperature: T > 0.
        impl: As in ``dkd_loss``.

    Returns:
        Scalar in at least float32.

    Raises:
        ValueError: If shapes or settings do not fit.

    Example:
        >>> student, teacher = torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]])
        >>> round(jensen_shannon(student, teacher, temperature=1.0).item(), 4)  # log 2
        0.6931
    """
    kind = Divergence("jensen_shannon", temperature)
    if _fusing(student, teacher, None, kind, impl):
        return _fused(student, teacher, None, kind)
    return _jensen_shannon(student, teacher, temperature)


def _fusing(
    student: Tensor, teacher: Tensor, targets: Tensor | None, kind: Divergence, impl: Impl
) -> bool:
    """Checks the call; whether the fused path is to be taken."""
    _check_settings(kind, impl)
    _check_shapes(student, teacher, targets)
    if is_traced(kind.name, impl, student):
        return False
    if targets is not None and (targets.device.type == "cpu" or torch.is_anomaly_enabled()):
        low, high = targets.aminmax()
        if low.item() < 0 or high.item() >= student.shape[1]:
            check_labels(targets, student.shape[1])
    return impl != "reference"


def _check_shapes(student: Tensor, teacher: Tensor, targets: Tensor | None) -> None:
    shape = tuple(student.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise ValueError(f"student is {shape}; expected (batch, classes), at least (1, 2)")
    if tuple(teacher.shape) != shape:
        raise ValueError(f"teacher is {tuple(teacher.shape)}; expected {shape} as student")
    if targets is not None and (targets.shape != shape[:1] or targets.is_floating_point()):
        found = f"{tuple(targets.shape)} {targets.dtype}"
        raise ValueError(f"targets is {found}; expected ({shape[0]},) integers")


def _check_settings(kind: Divergence, impl: Impl) -> None:
    if not 0 < kind.temperature < math.inf:
        raise ValueError(f"temperature is {kind.temperature}; expected a number above 0")
    for name in ("target_weight", "non_target_weight"):
        value = getattr(kind, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number of at least 0")
    if impl not in IMPLS:
        known = ", ".join(IMPLS)
        raise ValueError(f"impl is {impl!r}; expected one of {known}")


def _fused(student: Tensor, teacher: Tensor, targets: Tensor | None, kind: Divergence) -> Tensor:
    """By the kernels; without autograd where no gradient can be asked for."""
    teacher = teacher.detach()
    if student.requires_grad and torch.is_grad_enabled():
        loss: Tensor = FusedDivergence.apply(student, teacher, targets, kind)
        return loss
    return compute(student.detach(), teacher, targets, kind, False)[0]


# The definitions. Where a probability is 0 its term is 0, also for a class that is -inf in both.


def _dkd(student: Tensor, teacher: Tensor, targets: Tensor, kind: Divergence) -> Tensor:
    t = kind.temperature
    known = targets != IGNORED
    label = torch.where(known, targets, 0).long().unsqueeze(1)
    log_q_binary, log_q = _split(at_least_float32(student) / t, label)
    log_p_binary, log_p = _split(at_least_float32(teacher.detach()) / t, label)
    binary, others = _kl(log_p_binary, log_q_binary), _kl(log_p, log_q)
    losses = kind.target_weight * binary + kind.non_target_weight * others
    return t**2 * (losses * known).sum() / known.sum().clamp(min=1)


def _split(scaled: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of label and rest, (B, 2), and of the rest among themselves, (B, C)."""
    at_label = label == torch.arange(scaled.shape[1], device=scaled.device)
    others = scaled.masked_fill(at_label, -math.inf)
    x = scaled.gather(1, label) - others.logsumexp(1, keepdim=True)
    return F.logsigmoid(torch.cat((x, -x), 1)), F.log_softmax(others, dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, (B,)."""
    p = log_p.exp()
    # Chosen before the product: inf - inf must stay out of the gradient of p as well.
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(1)


def _log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=1)
    log_p = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=1)
    return log_q, log_p


def _reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = _log_probs(student, teacher, temperature)
    return temperature**2 * _kl(log_q, log_p).mean()


def _jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = _log_probs(student, teacher, temperature)
    total = log_q.exp() + log_p.exp()
    log_m = torch.where(total > 0, total, 1.0).log() - math.log(2.0)
    return temperature**2 * (_kl(log_p, log_m) + _kl(log_q, log_m)).mean() / 2
