"""What a call of ``kd_loss`` consists of, and the errors that name what does not fit."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fskd.losses.targets import IGNORED

Kind = tuple[torch.Size, torch.dtype]
Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "reference", "eager", "compiled"]
Settings = tuple[float, float, float, float, float, str, str]  # of an Objective, unchecked
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


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


def check_logits(student: Kind, teacher: Kind) -> None:
    """ValueError unless both are (rows, classes) of numbers."""
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


def check_targets(targets: torch.Size, dtype: torch.dtype, logits: torch.Size) -> None:
    """ValueError unless these are classes or class probabilities of the first rows."""
    rows, classes = logits
    if len(targets) == 0 or not 0 < targets[0] <= rows:
        expected = f"1 to {rows} rows; leave targets out if no row has a label"
        raise ValueError(f"targets is {tuple(targets)}; expected {expected}")
    if dtype.is_floating_point:
        if len(targets) != 2 or targets[1] != classes:
            raise ValueError(f"targets is {tuple(targets)}; expected (real, {classes})")
    elif len(targets) != 1:
        raise ValueError(f"targets is {tuple(targets)}; expected (real,) classes")


def check_settings(objective: Objective) -> None:
    """ValueError if a setting is out of its range."""
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


def look(inputs: Inputs) -> None:
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
