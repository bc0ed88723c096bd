"""What happens beside the arithmetic of a step: counting, checking, logging, saving."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from fskd.errors import TrainingError
from fskd.methods.words import Term
from fskd.teachers.base import Teacher
from fskd.train.alone import AnyFabric
from fskd.train.task import DistillTask


@dataclass
class Counts:
    """What training cost so far; part of the saved state.

    Attributes:
        step: Optimiser updates.
        student_rows: Rows through each student, over all processes.
        teacher_queries: Rows through the teacher, over all processes.
        seconds: Wall-clock time, earlier attempts included.
        last: Value of every term when it was last computed in this phase.
    """

    step: int = 0
    student_rows: int = 0
    teacher_queries: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


@dataclass
class Watch:
    """Keeps account of the steps. Losses stay on the device until they are due to be read.

    Attributes:
        fabric: Knows the other processes.
        counts: Updated at every step.
        report: Gets a record of losses every ``log_every`` steps.
        save: Writes the state of task and optimisers.
        save_every: Seconds between saves.
        log_every: Steps between records.
        say: Shows the user a line.
    """

    fabric: AnyFabric
    counts: Counts
    report: Callable[[dict[str, Any]], None]
    save: Callable[[DistillTask, list[torch.optim.Optimizer]], None]
    save_every: float = 10.0
    log_every: int = 20
    say: Callable[[str], None] = lambda _: None
    _pending: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    _saved_at: float = field(default_factory=time.monotonic)

    def count(self, terms: Mapping[str, Term], rows: int) -> None:
        """A step is done that sent ``rows`` rows of this process through each student."""
        kept = {name: term.value.detach() for name, term in terms.items()}
        self._pending.append((self.counts.step, kept))
        self.counts.step += 1
        self.counts.student_rows += rows * self.fabric.world_size

    def look(
        self,
        phase: str,
        last: bool,
        task: DistillTask,
        optimizers: list[torch.optim.Optimizer],
        teacher: Teacher | None,
    ) -> None:
        """Checks, logs and saves what is due after a step.

        Raises:
            TrainingError: If a loss since the last look is not finite.
        """
        at_log = last or self.counts.step % self.log_every == 0
        due = self._due(at_log)
        if at_log or due:
            self._check()
            self.counts.teacher_queries = self._queries(teacher)
        if at_log:
            lr = optimizers[0].param_groups[0]["lr"]
            self.report({"step": self.counts.step, "phase": phase, "lr": lr, **self.counts.last})
        if due:
            self.save(task, optimizers)

    def _due(self, at_log: bool) -> bool:
        """Whether it is time to save; several processes ask the first one's clock when logging."""
        due = time.monotonic() - self._saved_at >= self.save_every
        if self.fabric.world_size > 1:
            due = at_log and bool(self.fabric.broadcast(due))
        if due:
            self._saved_at = time.monotonic()
        return due

    def _check(self) -> None:
        """Reads the pending losses at once, as means over processes."""
        terms = [term.float() for _, losses in self._pending for term in losses.values()]
        values = iter(self._over_processes(torch.stack(terms), "mean").tolist())
        for step, losses in self._pending:
            for name in losses:
                value = next(values)
                if not math.isfinite(value):
                    raise TrainingError(f"step {step}: the term '{name}' is {value}")
                self.counts.last[name] = value
        self._pending.clear()

    def _queries(self, teacher: Teacher | None) -> int:
        own = torch.tensor(0 if teacher is None else teacher.queries)
        return int(self._over_processes(own, "sum"))

    def _over_processes(self, values: Tensor, reduce: str) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        return cast(Tensor, self.fabric.all_reduce(values, reduce_op=reduce))
