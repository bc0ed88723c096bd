"""The KD and KD+ objective with its gradient in closed form, in one visit to the logits.

``kd_loss`` is an ordinary differentiable function; ``kd_loss_and_grad`` hands out the gradient for
loops that write ``logits.backward(grad)``. ``targets.kd_objective`` is the readable definition and
``docs/losses.md`` the derivation.
"""

from typing import Any, TypedDict, Unpack, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fskd.losses.fused.autograd import is_traced, keep, kept, refuse_second_derivative
from fskd.losses.fused.checks import Impl, Objective, Reduction, Settings, Tensors
from fskd.losses.fused.execute import Call, compute, planned
from fskd.losses.targets import at_least_float32, kd_objective


class KDOptions(TypedDict, total=False):
    """Options of ``kd_loss``; see there."""

    temperature: float
    ce_weight: float
    kd_weight: float
    generated_weight: float
    label_smoothing: float
    row_weights: Tensor | None
    teacher_lse: Tensor | None
    reduction: Reduction
    impl: Impl
    debug: bool


def kd_loss(
    student_logits: Float[Tensor, "rows classes"],
    teacher_logits: Float[Tensor, "rows classes"],
    targets: Int[Tensor, " real"] | Float[Tensor, "real classes"] | None = None,
    *,
    temperature: float = 4.0,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    generated_weight: float = 1.0,
    label_smoothing: float = 0.0,
    row_weights: Float[Tensor, " rows"] | None = None,
    teacher_lse: Float[Tensor, " rows"] | None = None,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    debug: bool = False,
) -> Float[Tensor, "..."]:
    r"""Cross-entropy plus softened KL on real rows, and softened KL on generated rows.

    L = ce_weight*CE(s, y) + kd_weight*T^2*KL(softmax(t/T) || softmax(s/T))
    + generated_weight*T^2*KL(softmax(t~/T) || softmax(s~/T)), each a mean over its rows, in nats.

    Hinton et al., 2015, arXiv 1503.02531; with generated rows the objective of KD+ (Deng and Zhang,
    ICLR 2021 submission). The first B = len(targets) rows are real; the M rows after them are
    generated and carry the teacher's term only. Without targets all rows are real and unlabelled.
    The teacher is constant. Arithmetic is in float32 for bfloat16 and float16.

    Args:
        student_logits: (B+M, C); -inf switches a class off.
        teacher_logits: (B+M, C).
        targets: Classes in [0, C), -100 for rows without a label, (B,); or class probabilities
            (B, C).
        temperature: T > 0.
        ce_weight: Weight of the label term.
        kd_weight: Weight of the teacher's term on real rows.
        generated_weight: Weight of the teacher's term on generated rows.
        label_smoothing: Share of the label spread over the C-1 wrong classes, in [0, 1).
        row_weights: Factor of each row, (B+M,). Means divide by the number of rows.
        teacher_lse: ``teacher_logsumexp(teacher_logits, temperature)``, if it is known already.
        reduction: ``mean``, ``sum``, or ``none`` for the loss of each row, (B+M,).
        impl: ``reference``, ``eager`` (fused), ``compiled`` (fused, by torch.compile's backend), or
            ``auto``, the fastest for the device and shape that is ready to use.
        debug: Look for NaN and for labels out of range first, which costs passes over the data (and
            on a GPU a wait). Also on under ``torch.autograd.detect_anomaly``.

    Returns:
        Scalar, or (B+M,) without reduction, in at least float32.

    Raises:
        ValueError: If shapes, labels or settings do not fit; names the tensor and what would.

    Example:
        >>> student = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
        >>> loss = kd_loss(student, teacher, torch.tensor([1]))  # the second row is generated
        >>> loss.backward()
        >>> round(loss.item(), 4), student.grad.sum(1).abs().max().item() < 1e-6
        (0.568, True)
    """
    settings = (
        temperature, ce_weight, kd_weight, generated_weight, label_smoothing, reduction, impl
    )  # fmt: skip
    inputs = student_logits, teacher_logits, targets, row_weights, teacher_lse
    if is_traced("kd_loss", impl, student_logits):
        return _reference(inputs, settings)
    call = planned(inputs, settings, debug)
    if call.objective.impl == "reference":
        return _reference(inputs, settings)
    if student_logits.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _KDLoss.apply(student_logits, inputs, call))
    with torch.no_grad():
        return compute(inputs, call, False)[0]


def kd_loss_and_grad(
    student_logits: Float[Tensor, "rows classes"],
    teacher_logits: Float[Tensor, "rows classes"],
    targets: Int[Tensor, " real"] | Float[Tensor, "real classes"] | None = None,
    *,
    out: Float[Tensor, "rows classes"] | None = None,
    **options: Unpack[KDOptions],
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows classes"]]:
    """``kd_loss`` with its gradient, for loops that write ``logits.backward(grad)``.

    Args:
        student_logits: As in ``kd_loss``; need not require a gradient.
        teacher_logits: As in ``kd_loss``.
        targets: As in ``kd_loss``.
        out: Where the gradient goes, contiguous, of the student's shape and precision. A buffer
            that is used again saves the page faults of a new one, which at 50,000 classes cost more
            than the arithmetic.
        options: Those of ``kd_loss``, but ``reduction="none"`` and ``impl="reference"``.

    Returns:
        The loss, scalar, and its gradient with respect to the student's logits.

    Raises:
        ValueError: As ``kd_loss``, or if ``out`` does not fit.

    Example:
        >>> student, teacher = torch.zeros(1, 4), torch.zeros(1, 4)
        >>> loss, grad = kd_loss_and_grad(student, teacher, torch.tensor([3]), ce_weight=1.0)
        >>> round(loss.item(), 4), grad.tolist()
        (1.3863, [[0.25, 0.25, 0.25, -0.75]])
    """
    debug = options.pop("debug", False)
    row_weights, teacher_lse = options.pop("row_weights", None), options.pop("teacher_lse", None)
    objective = Objective(**cast(Any, options))
    if objective.reduction == "none" or options.get("impl") == "reference":
        raise ValueError("reduction='none' and impl='reference' hand out no gradient; use kd_loss")
    like = student_logits
    if out is not None and not (
        out.shape == like.shape and out.dtype == like.dtype and out.is_contiguous()
    ):
        found = f"{tuple(out.shape)} {out.dtype}"
        raise ValueError(f"out is {found}; expected contiguous {tuple(like.shape)} {like.dtype}")
    inputs = student_logits, teacher_logits, targets, row_weights, teacher_lse
    call = planned(inputs, objective, debug)
    with torch.no_grad():
        loss, grad = compute(inputs, call, True, out)
    return loss, cast(Tensor, grad)


def teacher_logsumexp(
    teacher_logits: Float[Tensor, "rows classes"], temperature: float = 4.0
) -> Float[Tensor, " rows"]:
    """logsumexp(t/T) of every row, to be kept when the teacher's logits are used again.

    Args:
        teacher_logits: (rows, C).
        temperature: T > 0.
    """
    return torch.logsumexp(at_least_float32(teacher_logits.detach()) / temperature, dim=1)


class _KDLoss(torch.autograd.Function):
    """Computes the gradient with the loss, and again if it is asked for twice."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, inputs: Tensors, call: Call) -> Tensor:
        # Only what needs a gradient is an argument: each costs a microsecond.
        loss, ctx.grad = _gradient(inputs, call)
        keep(ctx, inputs, call.small)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("kd_loss")
        grad, ctx.grad = ctx.grad, None  # a kept reference would make autograd copy it
        if grad is None:
            grad = _gradient(kept(ctx), ctx.call)[1]
        # Autograd itself rounds a gradient of more precision than its tensor.
        return scale(grad, upstream), None, None


def _gradient(inputs: Tensors, call: Call) -> tuple[Tensor, Tensor]:
    """Loss and gradient, before it is scaled."""
    student, out = inputs[0], None
    if student.dtype is torch.float16:  # scaled up only afterwards, what is small would be lost
        out = torch.empty(student.shape, dtype=torch.float32, device=student.device)
    loss, grad = compute(inputs, call, True, out)
    return loss, cast(Tensor, grad)


def scale(grad: Tensor, upstream: Tensor) -> Tensor:
    """The gradient times the upstream one, in place, without making a GPU wait."""
    if upstream.dim() == 1:
        return grad.mul_(upstream.unsqueeze(1))
    if grad.is_cpu and upstream.item() == 1.0:
        return grad
    return grad.mul_(upstream)


def _reference(inputs: Tensors, settings: Settings) -> Tensor:
    """The same by the readable definition."""
    student, teacher, targets, row_weights, _ = inputs
    options = Objective(*cast(Any, settings))._asdict()
    options.pop("impl")
    return kd_objective(student, teacher, targets, row_weights=row_weights, **options)
