"""``a+b``: several methods that share one forward pass per row."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    ParamGroup,
    Phase,
    Reads,
    methods,
)
from fskd.seeding import derive
from fskd.types import Batch, EpochContext, Outputs, Progress, Settings, Shapes

# Name and settings; the settings are of the method's own class, which the registry knows.
Part = tuple[str, Settings]


def merge_reads(reads: Sequence[Reads]) -> Reads:
    """Everything that any of the parts reads."""
    return Reads(
        frozenset().union(*(r.student for r in reads)),
        frozenset().union(*(r.teacher for r in reads)),
        any(r.generated for r in reads),
        any(r.input_grad for r in reads),
        any(r.teacher_train for r in reads),
    )


def phases_of(parts: Sequence[Part]) -> tuple[Phase, ...]:
    """Phases of a composition: each part's initial phases in turn, then one joint main phase."""
    if len(parts) == 1:
        name, settings = parts[0]
        return methods.get(name).phases_of(cast(MethodSettings, settings))
    initial: list[Phase] = []
    mains: list[Phase] = []
    for name, settings in by_students(parts):
        *first, main = (
            phase._replace(trains=tuple(_inside(name, t) for t in phase.trains))
            for phase in methods.get(name).phases_of(cast(MethodSettings, settings))
        )
        initial += [
            phase._replace(name=f"{name}.{phase.name}", share=phase.share / main.share)
            for phase in first
        ]
        mains.append(main)
    trains = tuple(dict.fromkeys(t for main in mains for t in main.trains))
    reads = merge_reads([main.reads for main in mains])
    joint = Phase("main", 1.0, trains, reads, min(main.lr_scale for main in mains))
    return (*initial, joint)


def by_students(parts: Sequence[Part]) -> list[Part]:
    """Parts with several students first: their ``ce`` reaches all of them."""

    def needed(part: Part) -> int:
        return methods.get(part[0]).students_needed(cast(MethodSettings, part[1]))

    return sorted(parts, key=needed, reverse=True)


def _inside(part: str, trains: str) -> str:
    """``method.head`` of a part is ``method.parts.<part>.head`` of the composition."""
    if trains.split(".")[0] != "method":
        return trains
    return trains.replace("method", f"method.parts.{part}", 1)


class Composite(Method):
    """Weighted sum of methods; a term that two parts share is taken from the first of them.

    Args:
        parts: Name and settings of each method.
        shapes: As for every method.
    """

    def __init__(self, parts: Sequence[Part], shapes: Shapes) -> None:
        super().__init__(MethodSettings(), shapes)
        self.components = tuple(by_students(parts))
        self.parts = nn.ModuleDict(
            {name: build([(name, settings)], shapes) for name, settings in parts}
        )
        self.unit_terms = frozenset().union(*(m.unit_terms for m in self._methods()))
        # Filled by ``views`` and read by the ``forward`` of the same step.
        self._view_rows: list[int] = [0] * len(parts)

    def _methods(self) -> list[Method]:
        return [self.parts[name] for name, _ in self.components]  # type: ignore[misc]

    def phases(self) -> tuple[Phase, ...]:
        """See ``phases_of``."""
        return phases_of(self.components)

    def _active(self, progress: Progress) -> list[tuple[int, Method, Progress]]:
        """(position, part, progress as the part knows it) of the parts that have a say now."""
        part, dot, inner = progress.phase.partition(".")
        found = list(enumerate(self._methods()))
        if not dot:
            return [(i, method, progress) for i, method in found]
        names = [name for name, _ in self.components]
        i = names.index(part)
        return [(i, found[i][1], progress._replace(phase=inner))]

    def views(self, batch: Batch, rng: torch.Generator, progress: Progress) -> Tensor | None:
        """The views of the parts that have a say now, one after another."""
        extra: list[Tensor | None] = [None] * len(self.components)
        for i, method, inner in self._active(progress):
            extra[i] = method.views(batch, rng, inner)
        self._view_rows = [0 if views is None else len(views) for views in extra]
        given = [views for views in extra if views is not None]
        return torch.cat(given) if given else None

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        losses: Losses = {}
        for i, method, inner in self._active(progress):
            if any(self._view_rows):
                rows = self._rows_of(i, batch)
                own = method(
                    tuple(student.rows(rows) for student in students),
                    teacher.rows(rows),
                    batch._replace(inputs=batch.inputs[rows]),
                    inner,
                )
            else:
                own = method(students, teacher, batch, inner)
            losses = own | losses
        return losses

    def _rows_of(self, i: int, batch: Batch) -> Tensor:
        """The base rows and the views of part i."""
        start = batch.n_base + sum(self._view_rows[:i])
        views = range(start, start + self._view_rows[i])
        return torch.tensor([*range(batch.n_base), *views], device=batch.inputs.device)

    def weights(self, progress: Progress) -> dict[str, float]:
        weights: dict[str, float] = {}
        for _, method, inner in self._active(progress):
            weights = method.weights(inner) | weights
        return weights

    def on_epoch(self, context: EpochContext) -> None:
        for method in self._methods():
            method.on_epoch(context)

    def param_groups(self) -> list[ParamGroup]:
        return [group for method in self._methods() for group in method.param_groups()]


def build(parts: Sequence[Part], shapes: Shapes) -> Method:
    """The method, or the composition of several."""
    if len(parts) == 1:
        name, settings = parts[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(shapes.seed, "init", name))
            return methods.get(name)(cast(MethodSettings, settings), shapes)
    return Composite(parts, shapes)
