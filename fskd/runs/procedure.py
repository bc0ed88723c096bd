"""Carries out a procedure: what it may do with the run that it serves, and what that cost."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fskd.data.loader import chunks
from fskd.errors import TrainingError
from fskd.models.modes import in_mode
from fskd.procedures.base import Labelled, Procedure
from fskd.runs.batches import batch_maker
from fskd.runs.labelled import Trainings, label, on_labelled, pixels, predict
from fskd.runs.prepare import Job, rows_allowed
from fskd.runs.session import Session
from fskd.runs.teacher import Kind
from fskd.runs.track import Tracks
from fskd.runs.training import train
from fskd.seeding import torch_generator
from fskd.teachers.base import Teacher
from fskd.train.loop import phase_steps
from fskd.train.optim import build_optimizer, lr_factor
from fskd.train.watch import Counts

LAST = 10  # losses whose mean a descent gives


class RunHands:
    """What a procedure may do; see ``fskd.procedures.base.Hands``.

    Args:
        job: The run.
        session: Device, screen and saving.
        teacher: With its weights.
        role: What the network is for, as shown on the screen.
        tracks: Get what the log gets.

    Attributes:
        counts: What it cost so far.
        phases: Updates of descents and of the phases of the loop.
        notes: What the procedure keeps in the result.
    """

    def __init__(
        self, job: Job, session: Session, teacher: Teacher, role: str, tracks: Tracks
    ) -> None:
        self._job, self._session, self._role, self._tracks = job, session, role, tracks
        self.teacher, self.student = teacher, job.students[0].to(session.device)
        self.size, self.steps = job.data.train.size, job.steps
        self.budget, self._trainings = rows_allowed(job), Trainings(job)
        self.rng = torch_generator(job.config.seed, "procedure")
        self.counts, self.phases, self.notes = Counts(), dict[str, int](), dict[str, Any]()

    def images(self) -> Iterator[Tensor]:
        """The subset's images in order, unmoved."""
        job, session = self._job, self._session
        for inputs, _ in chunks(job.data.train, session.device, job.subset.train):
            yield inputs

    def train(self) -> None:
        """The ordinary loop, with the updates that are left."""
        left = self.steps - self.counts.step
        if left <= 0:
            return
        job = self._job._replace(steps=left)
        self._count_phases(left)
        self._add(train(job, self._session, self.teacher, self._role, self._tracks))

    def _count_phases(self, steps: int) -> None:
        phases = self._job.method.stretches()
        for phase, length in zip(phases, phase_steps(phases, steps), strict=True):
            self.phases[phase.name] = self.phases.get(phase.name, 0) + length

    def _add(self, after: Counts) -> None:
        before = self.counts
        self.counts = Counts(
            before.step + after.step,
            before.student_rows + after.student_rows,
            self.teacher.queries,
            before.seconds + after.seconds,
            {**before.last, **after.last},
        )

    def descend(
        self,
        loss: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        steps: int,
        lr: float | None = None,
    ) -> float:
        """Steps of the run's optimiser on a loss of the batches' images."""
        begun, job, settings = time.perf_counter(), self._job, self._job.config.optim
        if lr is not None:
            settings = settings.model_copy(update={"lr": lr})
        batches = batch_maker(job, self._session.device, self._session.runtime.workers)
        optimizer, values = build_optimizer(parameters, settings), deque[Tensor](maxlen=LAST)
        for step in range(steps):
            factor = lr_factor(settings, step / steps) if lr is None else 1.0
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            inputs = batches.loader.batch(step).inputs
            optimizer.zero_grad(set_to_none=True)
            with self._session.fabric.autocast():
                value = loss(inputs)
            value.backward()
            if settings.grad_clip is not None:
                nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
            optimizer.step()
            values.append(value.detach())
            self.counts.student_rows += len(inputs)
        self.counts.step += steps
        self.phases["before"] = self.phases.get("before", 0) + steps
        self.counts.seconds += time.perf_counter() - begun
        found = float(torch.stack(list(values)).mean()) if values else 0.0
        if not math.isfinite(found):
            raise TrainingError(f"step {self.counts.step}: the procedure's loss is {found}")
        return found

    def pixels(self) -> Tensor:
        """The subset's images in order, uint8."""
        return pixels(self._job, self._session.device)

    def label(self, name: str, make: Callable[[], Tensor]) -> Labelled:
        """Images and the teacher's probabilities."""
        return label(self._job, self._session, self.teacher, name, make)

    def predict(self, images: Tensor) -> Tensor:
        """The student's logits for uint8 images."""
        return predict(self._job, self._session.device, images)

    def distil(self, made: Labelled, steps: int) -> None:
        """The ordinary loop on these images and answers, unless an earlier attempt finished it."""
        if self._trainings.begin():
            job = on_labelled(self._job, made, steps)
            known = Teacher(cast(Kind, job.teacher), self._session.device)
            before = self.counts.step
            self._add(train(job, self._session, known, self._role, self._tracks, before))
        self.counts = self._trainings.end(self.counts)
        self._count_phases(steps)

    @torch.no_grad()
    def look(self, images: Tensor) -> None:
        """Runs the student in eval mode; counted."""
        self.counts.student_rows += len(images)
        with in_mode(self.student, "eval"):
            self.student(images)

    def say(self, line: str) -> None:
        """Shows a line."""
        self._session.screen.say(line)

    def note(self, name: str, value: Any) -> None:
        """Keeps a plain value in the result."""
        self.notes[name] = value


def carry_out(
    procedure: Procedure,
    job: Job,
    session: Session,
    teacher: Teacher | None,
    role: str,
    tracks: Tracks,
) -> tuple[Counts, dict[str, Any]]:
    """Does what a procedure does; its counts, and its own fields of a ``Result``.

    Args:
        procedure: The procedure.
        job: The run.
        session: Device, screen and saving.
        teacher: With its weights.
        role: What the network is for.
        tracks: Get what the log gets.
    """
    hands = RunHands(job, session, cast(Teacher, teacher), role, tracks)
    begun = time.perf_counter()
    procedure.run(hands)
    # Trainings count their own time, earlier attempts included; a procedure does more.
    hands.counts.seconds = max(hands.counts.seconds, time.perf_counter() - begun)
    hands.counts.teacher_queries = hands.teacher.queries
    return hands.counts, {"phases": hands.phases, "procedure": hands.notes}
