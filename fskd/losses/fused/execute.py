"""From a call of ``kd_loss`` to kernels: row weights, segments, the choice of a path."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fskd.losses.fused import compiled, dispatch, kernels
from fskd.losses.fused.checks import (
    Inputs,
    Objective,
    Reduction,
    Settings,
    Tensors,
    check_labels,
    check_logits,
    check_settings,
    check_targets,
    look,
)
from fskd.losses.fused.chunks import Rows, constant_column
from fskd.losses.fused.small import MOST_CLASSES, MOST_LOGITS, Small
from fskd.losses.targets import IGNORED

Shortcut = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor] | None]


class Call(NamedTuple):
    """What settings and shapes alone decide.

    Attributes:
        objective: The settings, with ``auto`` replaced by a path.
        shortcut: Loss and gradient from student, teacher, targets and a place for the gradient in
            the usual case, with everything else made beforehand; None where the case is another,
            or what it returns.
        small: Whether the shortcut is as fast without the gradient as with it.
    """

    objective: Objective
    shortcut: Shortcut | None = None
    small: bool = False


def planned(inputs: Tensors, settings: Settings, debug: bool) -> Call:
    """The checked call; a look at the data only if asked to.

    Args:
        inputs: The tensors, in the order of ``Inputs``.
        settings: The settings, in the order of ``Objective``; both are plain tuples where it is
            called often, which are made in a tenth of the time.
        debug: Whether to look.

    Raises:
        ValueError: If shapes or settings do not fit, or with ``debug`` (or under anomaly detection)
            logits are NaN or labels out of range.
    """
    student, teacher, targets, weights, lse = inputs
    call = _planned(
        settings,
        student.device,
        student.shape,
        student.dtype,
        teacher.shape,
        teacher.dtype,
        None if targets is None else targets.shape,
        None if targets is None else targets.dtype,
        None if weights is None else weights.shape,
        None if lse is None else lse.shape,
    )
    if debug or torch.is_anomaly_enabled():
        look(Inputs(*inputs))
    return call


@lru_cache(maxsize=1024)
def _planned(
    settings: Settings,
    device: torch.device,
    shape: torch.Size,
    dtype: torch.dtype,
    teacher: torch.Size,
    teacher_dtype: torch.dtype,
    targets: torch.Size | None,
    targets_dtype: torch.dtype | None,
    row_weights: torch.Size | None,
    teacher_lse: torch.Size | None,
) -> Call:
    """Remembered, so that a loop pays for the checks once."""
    objective = Objective(*cast(Any, settings))
    check_settings(objective)
    check_logits((shape, dtype), (teacher, teacher_dtype))
    if targets is not None and targets_dtype is not None:
        check_targets(targets, targets_dtype, shape)
    for name, vector in (("row_weights", row_weights), ("teacher_lse", teacher_lse)):
        if vector is not None and vector != shape[:1]:
            raise ValueError(f"{name} is {tuple(vector)}; expected ({shape[0]},)")
    if objective.impl == "auto":
        objective = objective._replace(impl=fastest(device, dtype, shape))
    extra = row_weights is not None or teacher_lse is not None
    if targets is None or targets_dtype != torch.int64 or extra or device.type != "cpu":
        return Call(objective)
    return _usual(objective, shape, {dtype, teacher_dtype}, targets[0])


def _usual(objective: Objective, shape: torch.Size, dtypes: set[torch.dtype], n_real: int) -> Call:
    """With a shortcut, if it is the usual case of class labels, mean or sum, and both terms."""
    n_rows, t = shape[0], objective.temperature
    if (
        objective.reduction == "none"
        or objective.label_smoothing > 0
        or 0 in (objective.ce_weight, objective.kd_weight)
        or not dtypes <= {torch.float32, torch.bfloat16}
    ):
        return Call(objective)
    label, soft, generated = _weights(objective, n_rows, n_real)
    small = shape.numel() <= MOST_LOGITS and shape[1] <= MOST_CLASSES
    if objective.impl == "eager" and small:
        made = Small(n_rows, n_real, shape[1], t, label, soft, generated)
        return Call(objective, made, small=True)
    if objective.impl == "compiled":
        label_column = constant_column(n_rows, label, *_CPU_FLOAT)
        weights = (n_real, soft * t), (n_rows - n_real, generated * t)
        soft_column = torch.cat([constant_column(n, weight, *_CPU_FLOAT) for n, weight in weights])
        mean = objective.reduction == "mean"
        return Call(objective, compiled.Usual(label_column, soft_column, t, mean, shape[1]))
    return Call(objective)


_CPU_FLOAT = (torch.float32, torch.device("cpu"))


def forget() -> None:
    """Reads the table of measurements anew at the next call."""
    dispatch.forget()
    _planned.cache_clear()


def compute(
    inputs: Tensors, call: Call, want_grad: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient by the fused kernels.

    On a CPU the usual case is tried first: a label that is no class shows as an index out of range
    or NaN, a class that is -inf in both logits as NaN and one that is far above the label as a
    loss that is not finite, so what is absent costs nothing.

    Args:
        inputs: Checked tensors, in the order of ``Inputs``.
        call: Checked settings.
        want_grad: Whether the gradient is wanted.
        out: Where it goes, if it has a place already.
    """
    student, teacher, targets, _, _ = inputs
    objective, shortcut, ignoring = call.objective, call.shortcut, False
    if not student.is_cpu:
        return _by_segments(inputs, objective, want_grad, out, careful=True, ignoring=True)
    made: tuple[Tensor, Tensor | None] | None = None
    try:
        if shortcut is not None and targets is not None and (want_grad or call.small):
            made = shortcut(student, teacher, targets, out)
        if made is None:
            made = _by_segments(inputs, objective, want_grad, out)
    except (IndexError, RuntimeError):
        if not check_labels(targets, student.shape[1]):
            raise
        ignoring = True
        made = _by_segments(inputs, objective, want_grad, out, ignoring=True)
    loss = made[0]
    if not math.isfinite(loss.item() if loss.dim() == 0 else loss.sum().item()):
        ignoring = ignoring or check_labels(targets, student.shape[1])
        return _by_segments(inputs, objective, want_grad, out, True, ignoring)
    return made


def _weights(objective: Objective, n_rows: int, n_real: int) -> tuple[float, float, float]:
    """Weights of a row's label, of its teacher if it is real, and if it is generated."""
    _, label, soft, generated, *_ = objective
    if objective.reduction == "mean":
        label, soft = label / n_real, soft / n_real
        generated /= max(n_rows - n_real, 1)
    return label, soft, generated


def _by_segments(
    tensors: Tensors,
    objective: Objective,
    want_grad: bool,
    out: Tensor | None,
    careful: bool = False,
    ignoring: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Real rows, then generated rows, each by the kernel that has just their terms."""
    inputs = Inputs(*tensors)
    student, n_real = inputs.student, inputs.n_real
    n_rows = len(student)
    label, soft, generated = _weights(objective, n_rows, n_real)
    exact = torch.promote_types(student.dtype, torch.float32)
    grad, each = out, None
    if want_grad and out is None:
        grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    if objective.reduction == "none":
        each = torch.zeros(n_rows, dtype=exact, device=student.device)
    t = objective.temperature
    segments = [
        (slice(0, n_real), _real(inputs, label, soft * t, objective.reduction, exact, ignoring)),
        (slice(n_real, n_rows), _generated(inputs, generated * t, exact)),
    ]
    values = []
    for where, rows in segments:
        place = _rows(grad, where, n_rows)
        if rows is not None:
            own = rows._replace(grad=place, each=_rows(each, where, n_rows))
            values.append(run(own, objective, careful))
        elif place is not None:
            place.zero_()
    if each is not None:
        return each, grad
    if not values:
        return student.new_zeros((), dtype=exact), grad
    return sum(values[1:], values[0]), grad


def _rows(tensor: Tensor | None, where: slice, n_rows: int) -> Tensor | None:
    """Some rows of a tensor; itself if these are all, since slicing costs a call."""
    if tensor is None or (where.start == 0 and where.stop == n_rows):
        return tensor
    return tensor[where]


def fastest(device: torch.device, dtype: torch.dtype, shape: torch.Size) -> dispatch.Route:
    """The path of ``auto`` for such logits."""
    return dispatch.best_path(device.type, str(dtype).removeprefix("torch."), *shape)


def run(rows: Rows, objective: Objective, careful: bool = False) -> Tensor:
    """The sum of ``kernels.run``, by compiled code where that is asked for and possible."""
    if _compiles(rows, objective, careful):
        value = compiled.run(rows, objective.temperature, objective.reduction == "mean")
        if value is not None:
            return value
    return kernels.run(rows, objective.temperature, objective.label_smoothing, careful)


def terms(
    rows: Rows, objective: Objective, careful: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """The two sums of ``kernels.terms``, in the same way."""
    if _compiles(rows, objective, careful):
        made = compiled.terms(rows, objective.temperature)
        if made is not None:
            return made
    return kernels.terms(rows, objective.temperature, objective.label_smoothing, careful)


def _compiles(rows: Rows, objective: Objective, careful: bool) -> bool:
    """Whether compiled code is to be tried; on a CPU it is made for the usual case alone."""
    if objective.impl != "compiled" or (careful and rows.student.is_cpu):
        return False
    return compiled.covers(rows, objective.label_smoothing)


def _real(
    inputs: Inputs, label: float, soft: float, reduction: Reduction, exact: torch.dtype,
    ignoring: bool,
) -> Rows | None:  # fmt: skip
    """The real rows with the terms that have a weight; None if there is no such term."""
    student, teacher, targets, weights, lse = inputs
    if (label == 0 or targets is None) and soft == 0:
        return None
    n, device = inputs.n_real, student.device
    soft_column = _column(n, soft, exact, device, weights)
    label_column = soft_column  # stands for weights that are not read
    if label == 0:
        targets = None
    if targets is not None:
        label_column = _column(n, label, exact, device, weights)
        if targets.is_floating_point():
            targets = targets.to(exact)
        else:
            targets = targets.long().unsqueeze(1)
            if ignoring:
                known = targets != IGNORED
                label_column = label_column * known
                if reduction == "mean":
                    label_column *= n / known.sum().clamp(min=1).to(exact)
                targets = targets.masked_fill(~known, 0)
    first = slice(0, n)
    return Rows(
        cast(Tensor, _rows(student, first, len(student))),
        _rows(teacher, first, len(student)) if soft > 0 else None,
        targets,
        label_column,
        soft_column,
        teacher_lse=None if lse is None else lse[:n].unsqueeze(1).to(exact),
    )


def _generated(inputs: Inputs, weight: float, exact: torch.dtype) -> Rows | None:
    """The generated rows; None if there are none or they have no weight."""
    student, teacher, _, weights, lse = inputs
    n = inputs.n_real
    if weight == 0 or n == len(student):
        return None
    own = None if weights is None else weights[n:]
    column = _column(len(student) - n, weight, exact, student.device, own)
    known = None if lse is None else lse[n:].unsqueeze(1).to(exact)
    return Rows(student[n:], teacher[n:], None, column, column, teacher_lse=known)


def _column(
    n: int, value: float, dtype: torch.dtype, device: torch.device, weights: Tensor | None
) -> Tensor:
    """A weight times the factors of n rows, (n, 1)."""
    if weights is None:
        return constant_column(n, value, dtype, device)
    return weights[:n].detach().to(dtype).mul(value).unsqueeze(1)
