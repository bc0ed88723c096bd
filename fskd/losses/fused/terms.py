"""The terms of KD and KD+ one by one, for loops that weight them.

``fused.kd_loss`` knows the weights beforehand and writes the gradient at once. Here the weights
arrive as upstream gradients. Of few logits the forward pass keeps the three softmaxes, and the
backward pass is one weighted sum of them; many are taken by chunks.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fskd.losses.fused import execute
from fskd.losses.fused.autograd import is_traced, keep, kept, refuse_second_derivative
from fskd.losses.fused.checks import Objective
from fskd.losses.fused.chunks import Rows, constant_column
from fskd.losses.targets import at_least_float32, cross_entropy, kl_divergence

Weights = tuple[float, float, float]

# Most logits of which softmaxes are kept on a CPU: with weights that are known, and without.
MOST_KEPT = 40_000, 200_000
SAME = 1e-6  # weights that differ less are one
TRACE = 1e-20  # stands for a weight of 0: the gradient loses it, the term's value does not
NEVER = -(1 << 31)  # no label: one that is no class, -100 included, is an error


class Terms(NamedTuple):
    """Means over rows, in nats; a term without rows is 0.

    Attributes:
        ce: Cross-entropy of the real rows with their labels.
        kd: T^2 KL of the real rows.
        generated: T^2 KL of the generated rows.
    """

    ce: Tensor
    kd: Tensor
    generated: Tensor


def kd_terms(
    student_logits: Float[Tensor, "rows classes"],
    teacher_logits: Float[Tensor, "rows classes"],
    targets: Int[Tensor, " real"],
    temperature: float = 4.0,
    weights: Weights | None = None,
) -> Terms:
    """Cross-entropy and softened KL of real rows, and softened KL of the rows after them.

    The definitions are ``targets.cross_entropy`` and ``targets.kl_divergence``.

    Args:
        student_logits: (B+M, C).
        teacher_logits: (B+M, C), constant.
        targets: Classes of the first B rows, (B,).
        temperature: T > 0.
        weights: What the terms will be weighted with, up to a common factor. If it comes so, the
            gradient of many logits is made in the same pass as the terms; if not, in another.

    Example:
        >>> terms = kd_terms(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([1]))
        >>> [round(term.item(), 4) for term in terms]
        [1.3863, 0.0, 0.0]
    """
    if is_traced("kd_terms", "auto", student_logits):
        return _plain(student_logits, teacher_logits, targets, temperature)
    most = MOST_KEPT[weights is None]
    if student_logits.is_cpu and student_logits.numel() > most:
        arguments = (student_logits, teacher_logits, targets, temperature, weights)
        return Terms(*_TermsByChunks.apply(*arguments))
    return Terms(*_Terms.apply(student_logits, teacher_logits, targets, temperature))


def _plain(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Terms:
    """The definitions, which a compiler fuses by itself."""
    n, zero = len(targets), at_least_float32(student).new_zeros(())
    generated = len(student) > n
    return Terms(
        cross_entropy(student[:n], targets) if n else zero,
        kl_divergence(student[:n], teacher[:n], temperature) if n else zero,
        kl_divergence(student[n:], teacher[n:], temperature) if generated else zero,
    )


class _Terms(torch.autograd.Function):
    """``kd_terms`` with its gradient in closed form."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_rows, n_real = len(student), len(targets)
        exact = torch.promote_types(student.dtype, torch.float32)
        constants = _constants(n_rows, n_real, temperature, exact, student.device)
        inverse, kl_weights, ctx.coefficients = constants
        z = torch.stack((student, student, teacher)).to(exact).mul_(inverse)
        z.sub_(z.amax(2, True))
        probs = z.exp()
        partition = probs.sum(2)
        probs.div_(partition.unsqueeze(2))
        hard, soft, known = z.unbind()
        log_z = partition.log_()
        kl = known.sub_(soft).mul_(probs[2]).sum(1).add_(log_z[1]).sub_(log_z[2])
        kd, generated = kl_weights.mul(kl).sum(1).unbind()
        ce = log_z.new_zeros(())
        if n_real:
            ce = F.nll_loss(hard[:n_real], targets, ignore_index=NEVER).add_(
                log_z[0, :n_real].mean()
            )
        ctx.save_for_backward(probs, targets)
        ctx.dtype = student.dtype
        return ce, kd, generated

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("kd_terms", "a sum of the terms in targets.py")
        probs, targets = ctx.saved_tensors
        weights = torch.stack(upstream).unsqueeze(1).mul(ctx.coefficients).sum(0)
        grad = torch.mul(probs, weights.view(3, -1, 1)).sum(0)
        n_real = len(targets)
        if n_real:
            label = weights[:n_real].neg().unsqueeze_(1)
            grad[:n_real].scatter_add_(1, targets.unsqueeze(1), label)
        return grad.to(ctx.dtype), None, None, None


class _TermsByChunks(torch.autograd.Function):
    """The same with no memory but the gradient's."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float,
        weights: Weights | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        wrong = targets[(targets < 0) | (targets >= student.shape[1])]
        if len(wrong):
            raise IndexError(f"Target {int(wrong[0])} is out of bounds.")
        keep(ctx, (student, teacher, targets))
        ctx.temperature, ctx.grad = temperature, None
        if weights is None or min(weights) < 0 or not ctx.needs_input_grad[0]:
            weights = (1.0, 1.0, 1.0)
        else:
            weights = cast(Weights, tuple(max(weight, TRACE) for weight in weights))
            exact = torch.float32 if student.dtype is torch.float16 else student.dtype
            ctx.grad = torch.empty(student.shape, dtype=exact, device=student.device)
        ctx.weights = weights
        segments = _segments(student, teacher, targets, temperature, weights, ctx.grad)
        found, ctx.careful = _found(segments, temperature)
        real = found.pop(0) if len(targets) else (None, None)
        terms = (*real, found[0][1] if found else None)
        zero = student.new_zeros(3, dtype=torch.promote_types(student.dtype, torch.float32))
        pairs = zip(terms, weights, zero.unbind(), strict=True)
        return tuple(none if x is None else x.div_(weight) for x, weight, none in pairs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("kd_terms", "a sum of the terms in targets.py")
        student, teacher, targets = kept(ctx)
        grad, ctx.grad = ctx.grad, None  # a kept reference would make autograd copy it
        given = cast(Weights, tuple(x.item() for x in upstream))
        factor = None
        if grad is not None:
            factor = _factor(given, ctx.weights, len(targets), len(student))
        if grad is None or factor is None:
            grad = torch.empty_like(student, memory_format=torch.contiguous_format)
            for rows in _segments(student, teacher, targets, ctx.temperature, given, grad):
                execute.run(rows, _objective(rows, ctx.temperature), ctx.careful)
        elif factor != 1.0:
            grad.mul_(factor)
        return grad, None, None, None, None


def _found(
    segments: list[Rows], temperature: float
) -> tuple[list[tuple[Tensor | None, Tensor | None]], bool]:
    """Both terms of each segment, and whether they took care."""
    for careful in (False, True):
        found = [execute.terms(x, _objective(x, temperature), careful) for x in segments]
        if all(x is None or math.isfinite(x.item()) for pair in found for x in pair):
            break
    return found, careful


def _factor(given: Weights, expected: Weights, n_real: int, n_rows: int) -> float | None:
    """What the expected weights were multiplied with; None if it is not one number for all."""
    present = n_real > 0, n_real > 0, n_real < n_rows
    pairs = zip(given, expected, present, strict=True)
    factors = [g / e for g, e, there in pairs if there and (g, e) != (0.0, TRACE)] or [0.0]
    same = max(factors) - min(factors) <= SAME * abs(factors[0])
    return factors[0] if same else None


def _segments(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, weights: Weights,
    grad: Tensor | None,
) -> list[Rows]:  # fmt: skip
    """The real and the generated rows, as far as there are some, with weights of means."""
    n, n_rows = len(targets), len(student)
    label, real, generated = weights
    parts = [(slice(0, n), real, targets.long().unsqueeze(1)), (slice(n, n_rows), generated, None)]
    exact = torch.promote_types(student.dtype, torch.float32)
    found = []
    for part, soft, classes in parts:
        size = part.stop - part.start
        if size:
            place = None if grad is None else grad[part]
            hard = constant_column(size, label / size, exact, student.device)
            known = constant_column(size, soft * temperature / size, exact, student.device)
            found.append(Rows(student[part], teacher[part], classes, hard, known, place))
    return found


def _objective(rows: Rows, temperature: float) -> Objective:
    """Sums with the weights of the rows, by the fastest path."""
    x = rows.student
    return Objective(temperature, reduction="sum", impl=execute.fastest(x.device, x.dtype, x.shape))


@lru_cache(maxsize=64)
def _constants(
    n_rows: int, n_real: int, temperature: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What shapes and T decide.

    Returns:
        1, 1/T, 1/T, (3, 1, 1); weights of each row's KL in both KL terms, (2, R); and of each row's
        three softmaxes in the gradient of the three terms, (3, 3R).
    """
    t, n_generated = temperature, n_rows - n_real
    real, generated, none = torch.zeros(3, n_rows, dtype=dtype)
    real[:n_real] = 1 / max(n_real, 1)
    generated[n_real:] = 1 / max(n_generated, 1)
    coefficients = torch.stack(
        [
            torch.cat((real, none, none)),
            torch.cat((none, t * real, -t * real)),
            torch.cat((none, t * generated, -t * generated)),
        ]
    )
    inverse = torch.tensor([1.0, 1 / t, 1 / t], dtype=dtype).view(3, 1, 1)
    weights = torch.stack((real, generated)) * t * t
    return inverse.to(device), weights.to(device), coefficients.to(device)
