"""The fused objective as one function compiled by torch's Inductor, one variant per shape.

The compiled code is called without the guards of ``torch.compile``, which on small logits cost more
than the arithmetic; the key of a variant holds everything that they would check.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fskd.losses.kernels import Rows, n_squarings

Variant = Callable[..., Tensor]

TYPICAL_SECONDS = 3.0  # to compile one variant, on a CPU
MAX_VARIANTS = 32  # a loop whose shape or temperature keeps changing goes on eagerly
ALIGNED = 16  # bytes; generated code may assume it on GPUs

_variants: dict[tuple[Any, ...], Variant | None] = {}
_lock = threading.Lock()
_log = logging.getLogger("fskd")


def covers(rows: Rows, smoothing: float) -> bool:
    """Whether there can be a variant for these rows."""
    if (
        rows.teacher is None
        or rows.each is not None
        or rows.teacher_lse is not None
        or smoothing > 0
        or (rows.targets is not None and rows.targets.is_floating_point())
    ):
        return False
    tensors = (rows.student, rows.teacher, rows.targets, rows.grad)
    return all(x is None or (x.is_contiguous() and x.data_ptr() % ALIGNED == 0) for x in tensors)


def run(rows: Rows, temperature: float) -> Tensor | None:
    """As ``kernels.run`` for rows that are covered; None without compiler or with many variants."""
    key = _key(rows, temperature)
    if key not in _variants:
        with _lock:
            if key not in _variants and len(_variants) < MAX_VARIANTS:
                _variants[key] = _compile(rows, temperature)
    variant = _variants.get(key)
    if variant is None:
        return None
    return variant(*_arguments(rows))


class Usual:
    """Loss and gradient of real rows with labels, called with as little around it as possible.

    Args:
        label: Weight of each row's cross-entropy, (n, 1).
        soft: T times the weight of each row's T^2 KL, (n, 1).
        temperature: T.
    """

    def __init__(self, label: Tensor, soft: Tensor, temperature: float) -> None:
        self.label, self.soft, self.temperature = label, soft, temperature
        self.variant: Variant | None = None

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Both for logits (n, C) and classes (n,); None where there is no variant for them."""
        if not (student.is_contiguous() and teacher.is_contiguous() and targets.is_contiguous()):
            return None
        column = targets.unsqueeze(1)
        grad = torch.empty_like(student) if out is None else out
        if self.variant is None:
            rows = Rows(student, teacher, column, self.label, self.soft, grad)
            if run(rows, self.temperature) is None:
                return None
            self.variant = _variants[_key(rows, self.temperature)]
        picked = student.gather(1, column)
        variant = cast(Variant, self.variant)
        return variant(student, teacher, self.soft, column, picked, self.label, grad), grad


def _key(rows: Rows, temperature: float) -> tuple[Any, ...]:
    student, teacher = rows.student, cast(Tensor, rows.teacher)
    return (
        temperature,
        student.shape,
        student.dtype,
        teacher.dtype,
        student.device,
        rows.targets is None,
        None if rows.grad is None else rows.grad.dtype,
        torch.get_num_threads(),
    )


def _arguments(rows: Rows) -> list[Tensor]:
    """What a variant is called with."""
    tensors = [rows.student, rows.teacher, rows.soft]
    if rows.targets is not None:
        # Taken outside, where a label out of range is an error and not a crash.
        tensors += [rows.targets, rows.student.gather(1, rows.targets), rows.label]
    return [x for x in (*tensors, rows.grad) if x is not None]


def _compile(rows: Rows, temperature: float) -> Variant | None:
    """A new variant; None, with a line in the log, if there is no working compiler."""
    arguments = _arguments(rows)
    labelled, wanted = rows.targets is not None, rows.grad is not None

    def objective(*tensors: Tensor) -> Tensor:
        return _objective(tensors, temperature, labelled, wanted)

    device = rows.student.device.type
    try:
        from torch._inductor import standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad(), torch.autocast(device, enabled=False):
            # Tensors of their own: two arguments that happen to be one tensor would become one.
            examples = [torch.empty_like(x) for x in arguments]
            graph = make_fx(objective, tracing_mode="fake")(*examples)
            made = standalone_compile(graph, list(examples), dynamic_shapes="from_example_inputs")
            first = made(*arguments)
    except Exception as error:  # no C++ compiler, no Triton, another torch: many kinds of failure
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("kd_loss is not compiled (%s); the eager path goes on", reason)
        return None
    if isinstance(first, Tensor):
        return cast(Variant, made)
    return lambda *tensors: made(*tensors)[0]


def _objective(
    tensors: tuple[Tensor, ...], temperature: float, labelled: bool, wanted: bool
) -> Tensor:
    """The rows' loss and, in the last tensor, its gradient; the formulas are in ``kernels``."""
    student, teacher, soft, *rest = tensors
    exact = torch.promote_types(student.dtype, torch.float32)
    top = student.amax(1, keepdim=True).to(exact)
    u = student.to(exact) * (1 / temperature) - top * (1 / temperature)
    v = teacher.to(exact) * (1 / temperature)
    v = v - teacher.amax(1, keepdim=True).to(exact) * (1 / temperature)
    exp_u, exp_v = u.exp(), v.exp()
    z_soft, z_teacher = exp_u.sum(1, keepdim=True), exp_v.sum(1, keepdim=True)
    inner = torch.where(exp_v > 0, exp_v * (v - u), 0.0).sum(1, keepdim=True)
    kl = inner / z_teacher + z_soft.log() - z_teacher.log()
    loss = soft * kl * temperature
    grad = exp_u * (soft / z_soft) - exp_v * (soft / z_teacher)
    if labelled:
        targets, picked, label = rest[:3]
        power = _power(exp_u, u, temperature)
        z_label = power.sum(1, keepdim=True)
        # An ignored row may point at a class that is off, and 0 * inf is NaN.
        loss = loss + torch.where(label > 0, label * (z_label.log() + top - picked.to(exact)), 0.0)
        classes = torch.arange(student.shape[1], device=student.device)
        grad = grad + power * (label / z_label) - torch.where(classes == targets, label, 0.0)
    if wanted:
        tensors[-1].copy_(grad)
    return loss.sum()


def _power(exp_u: Tensor, u: Tensor, temperature: float) -> Tensor:
    """exp(u)^T, by multiplication where T is a small power of two."""
    squarings = n_squarings(temperature)
    if not squarings and temperature != 1.0:
        return (u * temperature).exp()
    for _ in range(squarings):
        exp_u = exp_u * exp_u
    return exp_u
