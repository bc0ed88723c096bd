"""One run from beginning to end: teacher, training, evaluation, files.

A teacher is a run of its own (cross-entropy on the full training set unless told otherwise), found
by its key and reused; a teacher assistant is a run with a teacher. ``result.json`` comes last, and
a run that has one is not repeated.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torch import Tensor

from fskd.config import RunConfig, Runtime
from fskd.data.loader import chunks, make_loader
from fskd.errors import TrainingError
from fskd.models.checkpoint import load_weights, save_weights
from fskd.models.taps import LOGITS
from fskd.models.teacher import Teacher
from fskd.results.store import MetricsLog, Result, RunDir, check_writable, write_text
from fskd.train.batches import BatchMaker
from fskd.train.checkpoint import State, load_state, save_state
from fskd.train.devices import launch
from fskd.train.loop import Counts, Saver, fit
from fskd.train.measure import measure
from fskd.train.prepare import Given, Job, prepare
from fskd.train.screen import Screen
from fskd.train.task import DistillTask

NOTHING_GIVEN = Given()


@dataclass
class Session:
    """What several runs in one process share.

    Attributes:
        runtime: Device, folders and the like.
        screen: Where progress is shown.
        fabric: Device placement, precision and processes, made from the runtime.
        test_logits: Teacher logits on the test split by teacher; many students ask for the same.
    """

    runtime: Runtime
    screen: Screen = field(default_factory=Screen)
    fabric: Fabric = field(init=False)
    test_logits: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_writable(self.out)
        self.fabric = launch(self.runtime)
        if not self.main:
            self.screen = Screen()

    @property
    def out(self) -> Path:
        """Folder of all runs."""
        return Path(self.runtime.out).expanduser()

    @property
    def main(self) -> bool:
        """True in the process that writes."""
        return self.fabric.is_global_zero

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.fabric.device


def run(
    config: RunConfig, session: Session, given: Given = NOTHING_GIVEN, force: bool = False
) -> Result:
    """Carries out one run, or returns the result of a finished one.

    Args:
        config: The settings.
        session: Shared by the runs of this process.
        given: Parts handed over from Python.
        force: Repeat a finished run (its teacher is still reused).

    Raises:
        FskdError: One line about what is wrong with settings, data or files.
        TrainingError: If training diverges.
    """
    begun = time.perf_counter()
    job = prepare(config, session.out, given)
    if not force and (done := job.folder.load()):
        session.screen.say(f"already finished: {job.folder.path} (--force repeats it)")
        return done
    seconds = {"prepare": time.perf_counter() - begun}
    begun = time.perf_counter()
    teacher, about = make_teacher(job, session, given)
    seconds["teacher"] = time.perf_counter() - begun
    with _alone(job.folder, session):
        if not force and (done := job.folder.load()):
            return done
        if force and session.main:
            job.folder.clear()
        session.fabric.barrier()
        task, counts = _train(job, session, teacher)
        begun = time.perf_counter()
        seconds["train"] = counts.seconds
        result = None
        if session.main:
            found = measure(job, task, teacher, about, session.device, session.test_logits)
            seconds["evaluate"] = time.perf_counter() - begun
            result = _write(job, task, counts, found, seconds, session)
        return session.fabric.broadcast(result)


@contextmanager
def _alone(folder: RunDir, session: Session) -> Iterator[None]:
    """Holds the run's lock, which dies with the process; another process waits and shares."""
    if session.main:
        check_writable(folder.path)
        lock = FileLock(folder.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            session.screen.say(f"waiting for another process that makes {folder.path}")
            lock.acquire()
        try:
            session.fabric.barrier()
            yield
        finally:
            lock.release()
    else:
        session.fabric.barrier()
        yield


def make_teacher(
    job: Job, session: Session, given: Given
) -> tuple[Teacher | None, dict[str, Any] | None]:
    """The teacher with its weights, made by a run of its own if need be, and what it is."""
    if job.teacher is None:
        return None, None
    config = job.config.teacher
    about: dict[str, Any] = {"key": job.config.inputs_sha256.get("teacher")}
    if config is None:
        about["name"] = type(given.teacher).__name__
    elif config.checkpoint is not None:
        about |= {"name": config.name, "checkpoint": config.checkpoint}
    else:
        made = run(job.config.teacher_run(), session, Given(data=given.data))
        load_weights(job.teacher.net, RunDir(Path(made.path)).student, "teacher")
        about = {"name": config.name, "key": made.key, "n_train": made.n_train}
        about["run"] = Path(made.path).name
    return Teacher(job.teacher, session.device), about


def _train(job: Job, session: Session, teacher: Teacher | None) -> tuple[DistillTask, Counts]:
    """Trains from the saved state, or from the beginning."""
    fabric, runtime, config = session.fabric, session.runtime, job.config
    rank, world = fabric.global_rank, fabric.world_size
    loader = make_loader(
        job.data.train, job.subset.train, job.real_rows, config.data.augment,
        config.seed, session.device, runtime.workers, rank, world,
    )  # fmt: skip
    batches = BatchMaker(
        loader, job.generator, job.method, job.n_generated, config.seed, rank, world
    )
    task = DistillTask(job.students, job.method)
    if runtime.compile:
        for net in job.students:
            net.compile()
    state = load_state(job.folder.state)
    counts = Counts() if state is None else state.counts
    if state is not None:
        task.load_state_dict(state.task)
        session.screen.say(f"going on at step {counts.step} of {job.steps}")
    if session.main:
        _write_config(job)
    log = MetricsLog(job.folder.metrics if session.main else None, counts.step)
    if teacher is not None:
        _remember_logits(job, teacher, loader.fixed_views, session)
        if state is not None:
            teacher.queries = counts.teacher_queries
    before, begun = counts.seconds, time.perf_counter()

    def save(task: DistillTask, optimizers: list[torch.optim.Optimizer], now: Counts) -> None:
        now.seconds = before + time.perf_counter() - begun
        if session.main:
            save_state(job.folder.state, task, optimizers, now)

    def report(record: dict[str, Any]) -> None:
        log.write(record)
        session.screen.step(record, job.steps, config.optim.batch_size)

    session.screen.begin(job.config, job.steps, counts.step)
    try:
        with torch.random.fork_rng():
            fit(
                task, teacher, batches, job.steps, config.optim, fabric, config.seed,
                Saver(save, runtime.save_every), report, counts,
                _restore_rng(state, fabric), runtime.log_every,
            )  # fmt: skip
    except TrainingError as error:
        raise TrainingError(f"{error}; {_last_state(job.folder)}") from None
    finally:
        session.screen.end()
    counts.seconds = before + time.perf_counter() - begun
    return task, counts


def _remember_logits(job: Job, teacher: Teacher, fixed_views: bool, session: Session) -> None:
    """Keeps the teacher's logits of the subset where nothing but logits of fixed views is read."""
    reads = [phase.reads for phase in job.method.phases() if phase.reads.teacher]
    plain = all(r.teacher == LOGITS and not r.input_grad and not r.teacher_train for r in reads)
    if fixed_views and plain:
        subset = chunks(job.data.train, session.device, job.subset.train)
        with session.fabric.autocast():
            teacher.remember(images for images, _ in subset)


def _restore_rng(state: State | None, fabric: Fabric) -> list[dict[str, Any]] | None:
    """Restores the generators that dropout uses; returns the optimisers' states."""
    if state is None:
        return None
    if fabric.world_size == 1:
        torch.set_rng_state(state.rng)
        if state.cuda_rng and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state.cuda_rng)
    return state.optimizers


def _last_state(folder: RunDir) -> str:
    state = load_state(folder.state)
    if state is None:
        return "no state was saved before; try a smaller optim.lr"
    return f"the last good state is step {state.counts.step} in {folder.state}"


def _write_config(job: Job) -> None:
    dumped = {"key": job.config.key(), **job.config.model_dump(mode="json")}
    write_text(job.folder.path / "config.yaml", yaml.safe_dump(dumped, sort_keys=False))


def _write(
    job: Job,
    task: DistillTask,
    counts: Counts,
    found: dict[str, Any],
    seconds: dict[str, float],
    session: Session,
) -> Result:
    """Writes the weights, then the result, then drops the training state."""
    folder = job.folder
    for i, net in enumerate(job.students):
        path = folder.student if i == 0 else folder.path / f"peer{i}.safetensors"
        save_weights(net.net, path)
    result = Result(
        key=job.config.key(),
        config=job.config.model_dump(mode="json"),
        steps=counts.step,
        epochs=round(counts.student_rows / len(job.subset.train), 3),
        student_rows=counts.student_rows,
        teacher_queries=counts.teacher_queries,
        final_loss=counts.last,
        seconds={name: round(value, 2) for name, value in seconds.items()},
        device=str(session.device),
        path=str(folder.path),
        **found,
    )
    write_text(folder.result, result.to_json())
    folder.state.unlink(missing_ok=True)
    folder.clean()
    return result
