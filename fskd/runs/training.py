"""Training of a prepared run: from the saved state or from the beginning, to the last step."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fskd.data.loader import chunks
from fskd.data.unlabelled import Unlabelled
from fskd.errors import FskdError, TrainingError
from fskd.methods.plan import Run
from fskd.models.taps import LOGITS
from fskd.results.store import MetricsLog, RunDir, write_text
from fskd.runs.answers import read_answers, write_answers
from fskd.runs.batches import batch_maker
from fskd.runs.prepare import Job
from fskd.runs.session import Session
from fskd.runs.track import Tracks
from fskd.teachers.base import Teacher, opaque
from fskd.teachers.table import Table
from fskd.train.checkpoint import load_state, save_state
from fskd.train.loop import Training, fit
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch

MOST_KEPT = 1 << 30  # bytes of the teacher's logits


def train(job: Job, session: Session, teacher: Teacher | None, role: str, tracks: Tracks) -> Counts:
    """Trains the students of a run; says what it cost.

    Args:
        job: The run.
        session: Device, screen and saving.
        teacher: With its weights, or None.
        role: What the network is for, as shown on the screen.
        tracks: Get what the log gets.

    Raises:
        TrainingError: If a loss is not finite; names step, term and the last good state.
    """
    fabric, runtime, config = session.fabric, session.runtime, job.config
    rank, world = fabric.global_rank, fabric.world_size
    batches = batch_maker(job, session.device, runtime.workers, rank, world)
    task = _task(job, session, teacher)
    if job.unlabelled is not None:
        session.screen.say(_about_unlabelled(job, job.unlabelled))
    state = load_state(job.folder.state)
    counts = Counts() if state is None else state.counts
    if state is not None:
        _go_on(task, state.task, job.folder.state)
        if job.generator is not None:
            job.generator.load_state_dict(state.generator)
        session.screen.say(f"going on at step {counts.step} of {job.steps}")
    if teacher is not None:
        _remember_logits(job, teacher, batches.loader.fixed_views, session)
        if state is not None:
            teacher.queries = counts.teacher_queries if session.main else 0
    report = _reporter(job, session, counts, role, tracks)
    save, finish = _saver(job, session, counts)
    every = runtime.save_every, runtime.log_every
    watch = Watch(fabric, counts, report, save, *every, session.screen.say)
    training = Training(task, teacher, batches, job.steps, config.optim, fabric, config.seed, watch)
    try:
        with torch.random.fork_rng():
            fit(training, [] if state is None else state.optimizers)
    except TrainingError as error:
        raise TrainingError(f"{error}; {_last_state(job.folder)}") from None
    finally:
        session.screen.end()
    finish()
    return counts


def _go_on(task: DistillTask, saved: dict[str, Tensor], path: Path) -> None:
    """Gives a task its saved state.

    Raises:
        FskdError: If it is of other networks and methods, as an older version of fskd had.
    """
    try:
        task.load_state_dict(saved)
    except RuntimeError:
        reason = "not of these networks and methods, perhaps of another version of fskd"
        raise FskdError(f"{path}: {reason}; --force starts anew") from None


def _task(job: Job, session: Session, teacher: Teacher | None) -> DistillTask:
    task = job.task()
    for name, role in job.method.roles.items():
        if role.of == "teacher" and role.weights in ("copy", "ema") and teacher is not None:
            # The teacher had no weights yet when the copy was made.
            task.nets[name].load_state_dict(teacher.net.state_dict())
    if session.runtime.channels_last:
        task.nets.to(memory_format=torch.channels_last)
        if teacher is not None:
            teacher.net.to(memory_format=torch.channels_last)
    if session.runtime.compile:
        for net in job.students:
            net.compile()
    return task


def _about_unlabelled(job: Job, hidden: Unlabelled) -> str:
    """How many there are, how they are seen, and what could not be read."""
    rows = job.rows
    views = f" in {rows.views} views" if rows.views > 1 else ""
    line = (
        f"{len(hidden.subset):,} unlabelled images {hidden.origin};"
        f" {rows.unlabelled}{views} beside {rows.real} labelled ones a step"
    )
    return f"{line}; {hidden.note}" if hidden.note else line


def _reporter(
    job: Job, session: Session, counts: Counts, role: str, tracks: Tracks
) -> Callable[[dict[str, Any]], None]:
    """Opens log and screen; returns what writes a record to both and to the trackers."""
    config = job.config
    log = MetricsLog(job.folder.metrics if session.main else None, counts.step)
    if session.main:
        save_config(job)
    n = f"n={len(job.subset.train)}"
    title = f"{role} {config.student} {config.method.name} {n} seed {config.seed}"
    session.screen.begin(title, job.steps, counts.step)

    def report(record: dict[str, Any]) -> None:
        log.write(record)
        tracks.log(record)
        session.screen.step(record, job.steps, config.optim.batch_size)

    return report


def save_config(job: Job) -> None:
    """Writes the run's settings beside its results."""
    dumped = {"key": job.config.key(), **job.config.model_dump(mode="json")}
    write_text(job.folder.path / "config.yaml", yaml.safe_dump(dumped, sort_keys=False))


def _saver(
    job: Job, session: Session, counts: Counts
) -> tuple[Callable[[DistillTask, list[torch.optim.Optimizer]], None], Callable[[], None]]:
    """What saves the state now and then, and what takes the final time."""
    before, begun = counts.seconds, time.perf_counter()

    def take_time() -> None:
        counts.seconds = before + time.perf_counter() - begun

    def save(task: DistillTask, optimizers: list[torch.optim.Optimizer]) -> None:
        take_time()
        if session.main:
            generator = {} if job.generator is None else job.generator.state_dict()
            save_state(job.folder.state, task, optimizers, counts, generator)

    return save, take_time


def logits_kept(job: Job, fixed_views: bool) -> int:
    """Of how many examples, the first of the subset, the teacher's logits are kept.

    None unless that saves queries: if nothing but logits of fixed views is read, and each more than
    once.
    """
    n, phases = len(job.subset.train), job.method.stretches()
    asked = [run for phase in phases for run in phase.runs if run.asks]
    plain = bool(asked) and all(run == Run("teacher", LOGITS) for run in asked)
    if not (fixed_views and plain and job.steps * job.rows.real > n):
        return 0
    if isinstance(job.teacher, Table):
        return n  # they are in memory already
    return min(n, MOST_KEPT // (4 * job.data.train.num_classes))


def _remember_logits(job: Job, teacher: Teacher, fixed_views: bool, session: Session) -> None:
    """What the teacher says of the subset is kept, as far as there is room."""
    n_kept, n = logits_kept(job, fixed_views), len(job.subset.train)
    known, keep, file = None, None, job.folder.answers
    if isinstance(teacher.net, Table):
        known = teacher.net.logits
    elif opaque(teacher.net):  # a run that goes on does not ask it again
        known = read_answers(file, n_kept, session.device)
        keep = partial(write_answers, file) if session.main else None

    def images() -> Iterator[Tensor]:
        parts = chunks(job.data.train, session.device, job.subset.train[:n_kept])
        with session.screen.passing("teacher on the training images", n_kept) as seen:
            for inputs, _ in parts:
                yield inputs
                seen(len(inputs))

    if n_kept:
        teacher.remember(images(), n_kept, n, known, keep)
    if 0 < n_kept < n:
        size = f"{MOST_KEPT >> 20} MiB hold the teacher's logits of {n_kept:,} of {n:,} images"
        session.screen.say(f"{size}; it is asked about the others in every step")


def _last_state(folder: RunDir) -> str:
    state = load_state(folder.state)
    if state is None:
        return "no state was saved before; try a smaller optim.lr"
    return f"the last good state is step {state.counts.step} in {folder.state}"
