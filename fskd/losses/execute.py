"""From a call of ``kd_loss`` to kernels: checks, row weights, segments, the choice of a path."""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from fskd.losses import compiled, dispatch, kernels
from fskd.losses.dispatch import best_path
from fskd.losses.kernels import Rows
from fskd.losses.stacked import MOST_CLASSES, MOST_LOGITS, plan, stacked
from fskd.losses.targets import IGNORED

Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "reference", "eager", "compiled"]


class Objective(NamedTuple):
    """What is computed, apart from tensors; see ``fused.kd_loss``."""

    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9
    generated_weight: float = 1.0
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    impl: Impl = "auto"


class Inputs(NamedTuple):
    """The tensors of a call; see ``fused.kd_loss``."""

    student: Tensor
    teacher: Tensor
    targets: Tensor | None
    row_weights: Tensor | None
    teacher_lse: Tensor | None

    @property
    def n_real(self) -> int:
        """B."""
        return len(self.student) if self.targets is None else len(self.targets)


class Call(NamedTuple):
    """What settings and shapes alone decide.

    Attributes:
        objective: The settings, with ``auto`` replaced by a path.
        shortcut: Loss and gradient from student, teacher and targets in the usual case, with
            everything else made beforehand; None where the case is another, or what it returns.
    """

    objective: Objective
    shortcut: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None] | None


def planned(inputs: Inputs, objective: Objective, debug: bool) -> Call:
    """The checked call; a look at the data only if asked to.

    Raises:
        ValueError: If shapes or settings do not fit, or with ``debug`` (or under anomaly detection)
            logits are NaN or labels out of range.
    """
    student, teacher, targets, weights, lse = inputs
    call = _planned(
        objective,
        student.device,
        (student.shape, student.dtype),
        (teacher.shape, teacher.dtype),
        None if targets is None else (targets.shape, targets.dtype),
        None if weights is None else weights.shape,
        None if lse is None else lse.shape,
    )
    if debug or torch.is_anomaly_enabled():
        _look(inputs)
    return call


Kind = tuple[torch.Size, torch.dtype]


@lru_cache(maxsize=1024)
def _planned(
    objective: Objective,
    device: torch.device,
    student: Kind,
    teacher: Kind,
    targets: Kind | None,
    row_weights: torch.Size | None,
    teacher_lse: torch.Size | None,
) -> Call:
    """Remembered, so that a loop pays for the checks once."""
    _check_settings(objective)
    shape, dtype = student
    _check_logits(student, teacher)
    if targets is not None:
        _check_targets(*targets, shape)
    for name, vector in (("row_weights", row_weights), ("teacher_lse", teacher_lse)):
        if vector is not None and vector != shape[:1]:
            raise ValueError(f"{name} is {tuple(vector)}; expected ({shape[0]},)")
    if objective.impl == "auto":
        path = best_path(device.type, str(dtype).removeprefix("torch."), *shape)
        objective = objective._replace(impl=path)
    extra = row_weights is not None or teacher_lse is not None
    if targets is None or targets[1] != torch.int64 or extra or device.type != "cpu":
        return Call(objective, None)
    return Call(objective, _shortcut(objective, shape, {dtype, teacher[1]}, targets[0][0]))


def _shortcut(
    objective: Objective, shape: torch.Size, dtypes: set[torch.dtype], n_real: int
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None] | None:
    """The usual case of integer labels, mean or sum, and both terms."""
    n_rows, t = shape[0], objective.temperature
    if (
        objective.reduction == "none"
        or objective.label_smoothing > 0
        or 0 in (objective.ce_weight, objective.kd_weight)
        or not dtypes <= {torch.float32, torch.bfloat16}
    ):
        return None
    label, soft, generated = _weights(objective, n_rows, n_real)
    small = shape.numel() <= MOST_LOGITS and shape[1] <= MOST_CLASSES
    if objective.impl == "eager" and small:
        return partial(stacked, constants=plan(n_rows, n_real, t, label, soft, generated))
    if objective.impl == "compiled" and n_rows == n_real:
        label_column = _constant(n_rows, label, *_CPU_FLOAT)
        return compiled.Usual(label_column, _constant(n_rows, soft * t, *_CPU_FLOAT), t)
    return None


_CPU_FLOAT = (torch.float32, torch.device("cpu"))


def _check_logits(student: Kind, teacher: Kind) -> None:
    shape, dtype = student
    if len(shape) != 2 or shape[1] < 2 or shape[0] == 0:
        found = tuple(shape)
        raise ValueError(f"student_logits is {found}; expected (rows, classes), at least (1, 2)")
    for name, kind in (("student_logits", dtype), ("teacher_logits", teacher[1])):
        if not kind.is_floating_point:
            raise ValueError(f"{name} is {kind}; expected a floating-point type")
    if teacher[0] != shape:
        expected = f"{tuple(shape)} as student_logits"
        raise ValueError(f"teacher_logits is {tuple(teacher[0])}; expected {expected}")


def _check_targets(targets: torch.Size, dtype: torch.dtype, logits: torch.Size) -> None:
    rows, classes = logits
    if len(targets) == 0 or not 0 < targets[0] <= rows:
        expected = f"1 to {rows} rows; leave targets out if no row has a label"
        raise ValueError(f"targets is {tuple(targets)}; expected {expected}")
    if dtype.is_floating_point:
        if len(targets) != 2 or targets[1] != classes:
            raise ValueError(f"targets is {tuple(targets)}; expected (real, {classes})")
    elif len(targets) != 1:
        raise ValueError(f"targets is {tuple(targets)}; expected (real,) classes")


def forget() -> None:
    """Reads the table of measurements anew at the next call."""
    dispatch.forget()
    _planned.cache_clear()


def _check_settings(objective: Objective) -> None:
    for name in ("ce_weight", "kd_weight", "generated_weight"):
        value = getattr(objective, name)
        if not (0 <= value < math.inf):
            raise ValueError(f"{name} is {value}; expected a finite number of at least 0")
    if not 0 < objective.temperature < math.inf:
        raise ValueError(f"temperature is {objective.temperature}; expected a number above 0")
    if not 0 <= objective.label_smoothing < 1:
        raise ValueError(f"label_smoothing is {objective.label_smoothing}; expected [0, 1)")
    for name, accepted in (("reduction", Reduction), ("impl", Impl)):
        if getattr(objective, name) not in accepted.__args__:  # type: ignore[attr-defined]
            known = ", ".join(accepted.__args__)  # type: ignore[attr-defined]
            raise ValueError(f"{name} is {getattr(objective, name)!r}; expected one of {known}")


def _look(inputs: Inputs) -> None:
    """ValueError if logits are NaN or +inf or labels out of range."""
    for name, logits in (("student_logits", inputs.student), ("teacher_logits", inputs.teacher)):
        if bool(torch.isnan(logits).any()) or bool(torch.isposinf(logits).any()):
            rows = (logits.isnan() | logits.isposinf()).any(1).nonzero().flatten().tolist()
            found = f"{name} {tuple(logits.shape)} has NaN or +inf in rows {rows[:5]}"
            raise ValueError(f"{found}; expected numbers, or -inf for a class that is off")
    check_labels(inputs.targets, inputs.student.shape[1])


def check_labels(targets: Tensor | None, classes: int) -> bool:
    """ValueError if a label is neither a class nor -100; whether some are -100."""
    if targets is None or targets.is_floating_point():
        return False
    wrong = ((targets < 0) & (targets != IGNORED)) | (targets >= classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        found = f"targets {tuple(targets.shape)} has {int(targets[row])} in row {row}"
        raise ValueError(f"{found}; expected [0, {classes}), or {IGNORED} for no label")
    return bool((targets == IGNORED).any())


def compute(
    inputs: Inputs, call: Call, want_grad: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient by the fused kernels.

    On a CPU the usual case is tried first: a label to be ignored shows as an index out of range,
    and a class that is -inf in both logits as NaN, so what is absent costs nothing.

    Args:
        inputs: Checked tensors.
        call: Checked settings.
        want_grad: Whether the gradient is wanted.
        out: Where it goes, if it has a place already.
    """
    objective = call.objective
    if inputs.student.device.type != "cpu":
        return _by_segments(inputs, objective, want_grad, out, masked=True, ignoring=True)
    ignoring = False
    made: tuple[Tensor, Tensor | None] | None = None
    try:
        # A place for the gradient is worth its copy where the logits are small.
        fits = out is None or out.numel() <= MOST_LOGITS
        if call.shortcut is not None and want_grad and fits:
            made = call.shortcut(*inputs[:3])  # type: ignore[arg-type]
            if made is not None and out is not None:
                made = made[0], out.copy_(made[1])
        if made is None:
            made = _by_segments(inputs, objective, want_grad, out)
    except (IndexError, RuntimeError):
        if not check_labels(inputs.targets, inputs.student.shape[1]):
            raise
        ignoring = True
        made = _by_segments(inputs, objective, want_grad, out, ignoring=True)
    loss = made[0]
    if math.isnan(loss.item() if loss.dim() == 0 else loss.sum().item()):
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
    inputs: Inputs,
    objective: Objective,
    want_grad: bool,
    out: Tensor | None,
    masked: bool = False,
    ignoring: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Real rows, then generated rows, each by the kernel that has just their terms."""
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
            values.append(_run(own, objective, masked))
        elif place is not None:
            place.zero_()
    if each is not None:
        return each, grad
    if len(values) == 1:
        return values[0], grad
    return torch.stack([*values, student.new_zeros((), dtype=exact)]).sum(), grad


def _rows(tensor: Tensor | None, where: slice, n_rows: int) -> Tensor | None:
    """Some rows of a tensor; itself if these are all, since slicing costs a call."""
    if tensor is None or (where.start == 0 and where.stop == n_rows):
        return tensor
    return tensor[where]


def _run(rows: Rows, objective: Objective, masked: bool) -> Tensor:
    """The kernel's sum, by the path asked for or the faster one."""
    if objective.impl == "compiled" and compiled.covers(rows, objective.label_smoothing):
        value = compiled.run(rows, objective.temperature)
        if value is not None:
            return value
    return kernels.run(rows, objective.temperature, objective.label_smoothing, masked)


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
        return _constant(n, value, dtype, device)
    return weights[:n].detach().to(dtype).mul(value).unsqueeze(1)


@lru_cache(maxsize=256)
def _constant(n: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, 1) of one value; kept, and never written to."""
    return torch.full((n, 1), value, dtype=dtype, device=device)
