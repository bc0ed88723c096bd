"""The KD objective with the last linear layer in it, for class counts whose logits do not fit.

A few rows of logits are made, compared, turned into their gradient and used up before the next: the
(B, C) logits of student and teacher never exist, nor does their gradient.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fskd.losses.fused.autograd import is_traced, refuse_second_derivative
from fskd.losses.fused.checks import Impl, Inputs, Objective
from fskd.losses.fused.execute import compute, planned
from fskd.losses.fused.objective import scale
from fskd.losses.targets import IGNORED, kd_objective

# Logits of one chunk; its products keep a core busy and its buffers are a few times 8 MB.
CHUNK = 1 << 21


class Layer(NamedTuple):
    """A linear layer and what goes into it: rows (R, D), weight (C, D), bias (C,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, rows: slice) -> Tensor:
        """The layer's output for some rows."""
        return F.linear(self.hidden[rows], self.weight, self.bias)


def linear_kd_loss(
    student_hidden: Float[Tensor, "rows width"],
    student_weight: Float[Tensor, "classes width"],
    student_bias: Float[Tensor, " classes"] | None = None,
    *,
    teacher_logits: Float[Tensor, "rows classes"] | None = None,
    teacher_hidden: Float[Tensor, "rows teacher_width"] | None = None,
    teacher_weight: Float[Tensor, "classes teacher_width"] | None = None,
    teacher_bias: Float[Tensor, " classes"] | None = None,
    targets: Int[Tensor, " real"] | None = None,
    temperature: float = 4.0,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    generated_weight: float = 1.0,
    impl: Impl = "auto",
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """``kd_loss`` of ``student_hidden @ student_weight.T + student_bias``, a few rows at a time.

    Gradients flow to the student's hidden rows, weight and bias. The idea of fusing the last layer
    is that of Liger-Kernel (Hsu et al., 2024, arXiv 2410.10989), here for the KD and KD+ objective.

    Args:
        student_hidden: What goes into the student's last layer, (B+M, D).
        student_weight: (C, D).
        student_bias: (C,).
        teacher_logits: (B+M, C); or else the teacher's layer:
        teacher_hidden: (B+M, D').
        teacher_weight: (C, D').
        teacher_bias: (C,).
        targets: Classes of the first B rows, (B,); -100 for none. Without them all rows are real.
        temperature: T > 0.
        ce_weight: Weight of the label term, a mean over the labelled rows.
        kd_weight: Weight of the teacher's term, a mean over the real rows.
        generated_weight: Weight of the teacher's term on the M generated rows, a mean.
        impl: As in ``kd_loss``; ``reference`` makes all logits.
        chunk_rows: Rows at a time; by default as many as make two million logits.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If shapes, labels or settings do not fit.

    Example:
        >>> hidden, weight = torch.ones(2, 3), torch.zeros(4, 3, requires_grad=True)
        >>> loss = linear_kd_loss(
        ...     hidden, weight, teacher_logits=torch.zeros(2, 4), targets=torch.tensor([0, 1])
        ... )
        >>> loss.backward()
        >>> round(loss.item(), 4), weight.grad[0].mul(40).round().tolist()
        (0.1386, [-1.0, -1.0, -1.0])
    """
    student = Layer(student_hidden, student_weight, student_bias)
    teacher = _teacher(teacher_logits, teacher_hidden, teacher_weight, teacher_bias)
    objective = Objective(temperature, ce_weight, kd_weight, generated_weight, impl=impl)
    _check(student, teacher, targets, objective)
    everything = slice(None)
    if impl == "reference" or is_traced("linear_kd_loss", impl, student_hidden):
        known = teacher if isinstance(teacher, Tensor) else teacher.logits(everything)
        settings = objective._asdict()
        settings.pop("impl")
        return kd_objective(student.logits(everything), known, targets, **settings)
    loss: Tensor = _LinearKDLoss.apply(*student, teacher, targets, objective, chunk_rows)
    return loss


def _teacher(
    logits: Tensor | None, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor | Layer:
    """The teacher in the one form that was given, as a constant."""
    if logits is not None and hidden is None:
        return logits.detach()
    if logits is None and hidden is not None and weight is not None:
        return Layer(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
    raise ValueError("give either teacher_logits, or teacher_hidden and teacher_weight")


def _check(
    student: Layer, teacher: Tensor | Layer, targets: Tensor | None, objective: Objective
) -> None:
    """ValueError if shapes or settings do not fit."""
    n_rows, n_classes = len(student.hidden), len(student.weight)
    layers = {"student": student}
    if isinstance(teacher, Layer):
        layers["teacher"] = teacher
    elif teacher.shape != (n_rows, n_classes):
        found = f"teacher_logits is {tuple(teacher.shape)}"
        raise ValueError(f"{found}; expected ({n_rows}, {n_classes})")
    for name, (hidden, weight, bias) in layers.items():
        expected = {
            "hidden": (hidden, (n_rows, *hidden.shape[1:2])),
            "weight": (weight, (n_classes, *hidden.shape[1:2])),
            "bias": (bias, (n_classes,)),
        }
        for part, (tensor, shape) in expected.items():
            if tensor is not None and tensor.shape != shape:
                found = f"{name}_{part} is {tuple(tensor.shape)}"
                raise ValueError(f"{found}; expected {shape}")
    # An expanded element has the shape of logits without their memory.
    like = student.hidden.new_zeros(()).expand(n_rows, n_classes)
    planned(Inputs(like, like, targets, None, None), objective, False)


class _LinearKDLoss(torch.autograd.Function):
    """Makes all gradients with the loss; asked for twice, they are made again."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        hidden, weight, bias, teacher, targets, objective, chunk_rows = arguments
        ctx.rest = (teacher, targets, objective, chunk_rows)
        ctx.save_for_backward(hidden, weight, bias)
        loss, ctx.grads = _run(Layer(hidden, weight, bias), ctx.needs_input_grad, *ctx.rest)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("linear_kd_loss")
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            layer = Layer(*ctx.saved_tensors)
            grads = _run(layer, ctx.needs_input_grad, *ctx.rest)[1]
        scaled = [None if grad is None else scale(grad, upstream) for grad in grads]
        return (*scaled, None, None, None, None)


def _run(
    student: Layer,
    wanted: tuple[bool, ...],
    teacher: Tensor | Layer,
    targets: Tensor | None,
    objective: Objective,
    chunk_rows: int | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients of hidden rows, weight and bias as far as they are wanted."""
    hidden, weight, _ = student
    exact = torch.promote_types(weight.dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=hidden.device)
    grads = [
        torch.empty_like(hidden) if wanted[0] else None,
        torch.zeros_like(weight, dtype=exact) if wanted[1] else None,
        torch.zeros(len(weight), dtype=exact, device=hidden.device) if wanted[2] else None,
    ]
    for rows, part, settings in _chunks(student, targets, objective, chunk_rows):
        logits = student.logits(rows)
        known = teacher[rows] if isinstance(teacher, Tensor) else teacher.logits(rows)
        inputs = Inputs(logits, known, part, None, None)
        loss, grad = compute(inputs, planned(inputs, settings, False), any(wanted[:3]))
        total += loss
        if grad is None:
            continue
        if grads[0] is not None:
            torch.mm(grad, weight, out=grads[0][rows])
        if grads[1] is not None and grads[1].dtype == grad.dtype:
            grads[1].addmm_(grad.t(), hidden[rows])
        elif grads[1] is not None:
            grads[1].add_(grad.t() @ hidden[rows])
        if grads[2] is not None:
            grads[2].add_(grad.sum(0, dtype=exact))
    return total, [None if g is None else g.to(weight.dtype) for g in grads]


def _chunks(
    student: Layer, targets: Tensor | None, objective: Objective, chunk_rows: int | None
) -> Iterator[tuple[slice, Tensor | None, Objective]]:
    """Rows of a chunk, their labels, and the objective whose sum over chunks is the whole one."""
    n_rows = len(student.hidden)
    n_real = n_rows if targets is None else len(targets)
    step = chunk_rows or max(CHUNK // len(student.weight), 1)
    n_known = 1 if targets is None else max(int((targets != IGNORED).sum()), 1)
    real = objective._replace(
        ce_weight=objective.ce_weight / n_known,
        kd_weight=objective.kd_weight / n_real,
        reduction="sum",
    )
    for start in range(0, n_real, step):
        rows = slice(start, min(start + step, n_real))
        yield rows, None if targets is None else targets[rows], real
    if n_rows > n_real:
        weight = objective.generated_weight / (n_rows - n_real)
        generated = objective._replace(kd_weight=weight, reduction="sum")
        for start in range(n_real, n_rows, step):
            yield slice(start, min(start + step, n_rows)), None, generated
