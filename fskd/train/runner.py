"""One run from beginning to end: teacher, training, evaluation, files.

A teacher is a run of its own (cross-entropy on the full training set unless told otherwise), found
by its key and reused; a teacher assistant is a run with a teacher. ``result.json`` comes last, and
a run that has one is not repeated.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from fskd.config import RunConfig
from fskd.errors import BusyError, FskdError, SettingError
from fskd.models.checkpoint import load_weights, save_weights
from fskd.models.teacher import Teacher
from fskd.results.store import Result, RunDir, check_writable, write_text
from fskd.train.measure import measure
from fskd.train.prepare import NOTHING_GIVEN, Given, Job, check_processes, prepare
from fskd.train.session import Session
from fskd.train.training import train
from fskd.train.watch import Counts


def run(
    config: RunConfig,
    session: Session,
    given: Given = NOTHING_GIVEN,
    force: bool = False,
    role: str = "student",
    wait: bool = True,
) -> Result:
    """Carries out one run, or returns the result of a finished one.

    Args:
        config: The settings.
        session: Shared by the runs of this process.
        given: Parts handed over from Python.
        force: Repeat a finished run (its teacher is still reused).
        role: What the network is for: ``student`` or ``teacher``.
        wait: If another process is making this run, wait for it and share the result.

    Raises:
        BusyError: If another process is making this run and ``wait`` is False.
        FskdError: One line about what is wrong with settings, data or files.
        TrainingError: If training diverges.
    """
    begun = time.perf_counter()
    job = prepare(config, session.out, given)
    check_processes(job, session.fabric.world_size)
    if not force and (done := _finished(job.folder, session)):
        hint = " (--force repeats it)" if role == "student" else ""
        session.tell_once(f"{role} already finished: {job.folder.path}{hint}")
        return done
    seconds = {"prepare": time.perf_counter() - begun}
    begun = time.perf_counter()
    teacher, about = make_teacher(job, session, given)
    seconds["teacher"] = time.perf_counter() - begun
    with _alone(job.folder, session, wait):
        if not force and (done := _finished(job.folder, session)):
            return done
        if force and session.main:
            job.folder.clear()
        session.fabric.barrier()
        counts = train(job, session, teacher, role)
        begun = time.perf_counter()
        seconds["train"] = counts.seconds
        result = None
        if session.main:
            found = measure(job, teacher, about, session.device, session.test_logits)
            seconds["evaluate"] = time.perf_counter() - begun
            result = _write(job, counts, found, seconds, session)
        return cast(Result, session.fabric.broadcast(result))


def _finished(folder: RunDir, session: Session) -> Result | None:
    """The result if there is one; the first process looks, so that all agree."""
    found = folder.load() if session.main else None
    return session.fabric.broadcast(found)


@contextmanager
def _alone(folder: RunDir, session: Session, wait: bool) -> Iterator[None]:
    """Holds the run's lock, which dies with the process."""
    if session.main:
        check_writable(folder.path)
        lock = FileLock(folder.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise BusyError(f"{folder.path}: another process is making it") from None
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
        made = run(job.config.teacher_run(), session, Given(data=given.data), role="teacher")
        folder = RunDir(Path(made.path))
        try:
            load_weights(job.teacher.net, folder.student, "teacher")
        except SettingError as error:
            raise FskdError(f"{error}; delete {folder.path} to train the teacher anew") from None
        about = {"name": config.name, "key": made.key, "n_train": made.n_train}
        about["run"] = Path(made.path).name
    return Teacher(job.teacher, session.device), about


def _write(
    job: Job,
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
        processes=session.fabric.world_size,
        precision=session.runtime.precision,
        path=str(folder.path),
        **found,
    )
    folder.failed.unlink(missing_ok=True)
    write_text(folder.result, result.to_json())
    folder.state.unlink(missing_ok=True)
    folder.clean()
    return result
