"""One run from beginning to end: teacher, training, evaluation, files.

A teacher is a run of its own (cross-entropy on the full training set unless told otherwise), found
by its key and reused; a teacher assistant is a run with a teacher. ``result.json`` comes last, and
a run that has one is not repeated.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from torch import nn

from fskd.config import RunConfig
from fskd.data.split_files import check_data, read, write
from fskd.data.splits import rank
from fskd.errors import BusyError, DataError, FskdError, SettingError
from fskd.models.checkpoint import load_weights
from fskd.models.taps import FeatureNet
from fskd.procedures.base import procedure_of
from fskd.results.store import Result, RunDir, check_writable, write_text
from fskd.runs.answers import keep
from fskd.runs.batches import check_processes
from fskd.runs.episodes import check_episodic, train_episodes
from fskd.runs.estimate import check_queries
from fskd.runs.finished import finished, recall
from fskd.runs.look import inherited, look_at_inputs, look_at_teacher
from fskd.runs.measure import measure, of_links, save_networks
from fskd.runs.prepare import (
    NOTHING_GIVEN,
    Given,
    Job,
    prepare,
)
from fskd.runs.procedure import carry_out
from fskd.runs.ranking import fill_pool, make_sampler, ranking_run, split_name
from fskd.runs.session import Session
from fskd.runs.teacher import about_all, about_teacher, make_source, mark, teacher_runs
from fskd.runs.track import Tracks, open_tracks
from fskd.runs.training import train
from fskd.teachers.base import Teacher, members
from fskd.train.watch import Counts
from fskd.types import ImageSet, Ranking


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
    if not force and (done := recall(config, session, given, role)):
        return done
    job = prepare(config, session.out, given)
    check_processes(job, session.fabric.world_size)
    check_episodic(job.config, given)
    check_queries(job, session.fabric.world_size)
    seconds = {"prepare": time.perf_counter() - begun}
    if job.ranking is None:
        ranking = rank_by_teacher(job, session, given, seconds)
        job = prepare(config, session.out, given, ranking)
    begun = time.perf_counter()
    doubts = look_at_inputs(job, session)
    teacher, about = make_teacher(job, session, given)
    doubts += look_at_teacher(job, teacher, about, session)
    doubts += inherited(about, doubts)
    seconds["teacher"] = seconds.get("teacher", 0.0) + time.perf_counter() - begun
    with _alone(job.folder, session, wait):
        if not force and (made := _made(job.folder, session)):
            return made  # by the process that held the lock
        if force and session.main:
            job.folder.clear()
        session.fabric.barrier()
        names = session.runtime.track if session.main else ()
        with open_tracks(names, job, session.screen.say) as tracks:
            if job.config.data.episodic is not None:
                counts, found = train_episodes(job, session, teacher, about, seconds)
            else:
                counts, found = _train_once(job, session, teacher, about, seconds, role, tracks)
            found |= {"notes": list(job.notes), "doubts": doubts}
            result = _write(job, counts, found, seconds, session) if session.main else None
            if result is not None:
                tracks.finish(result)
        return cast(Result, session.fabric.broadcast(result))


def _train_once(
    job: Job,
    session: Session,
    teacher: Teacher | None,
    about: dict[str, Any] | None,
    seconds: dict[str, float],
    role: str,
    tracks: Tracks,
) -> tuple[Counts, dict[str, Any]]:
    """Trains and measures the students of a run; the first process measures and keeps them."""
    procedure = procedure_of(job.method.methods.values())
    about_it = dict[str, Any]()
    if procedure is None:
        counts = train(job, session, teacher, role, tracks)
    else:
        counts, about_it = carry_out(procedure, job, session, teacher, role, tracks)
    seconds["train"] = counts.seconds
    begun, found = time.perf_counter(), dict[str, Any]()
    if session.main:
        found, logits = measure(job, teacher, about, session)
        found |= about_it
        if procedure is not None and procedure.ensemble:
            found["measured"] |= of_links(job, logits, session)
        save_networks(job, found)
        if role == "teacher":
            keep(job.folder, logits, job.data.test)
    seconds["evaluate"] = time.perf_counter() - begun
    return counts, found


def _made(folder: RunDir, session: Session) -> Result | None:
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


def make_links(config: RunConfig, session: Session, given: Given) -> None:
    """Makes the teachers of a run, and theirs before them, each a run of its own.

    Links are made once for all chains that begin alike, and none before one that is finished.

    Args:
        config: The run.
        session: Shared by the runs of this process.
        given: Parts handed over from Python; a teacher among them is all there is.
    """
    data = Given(data=given.data)
    for link in () if given.teacher is not None else teacher_runs(config):
        found = session.main and finished(link, session.out, data) is not None
        if not session.fabric.broadcast(found):
            make_links(link, session, given)
            run(link, session, data, role="teacher")


def make_teacher(
    job: Job, session: Session, given: Given
) -> tuple[Teacher | None, dict[str, Any] | None]:
    """The teacher with its weights, made by a run of its own if need be, and what it is."""
    if job.teacher is None:
        return None, None
    runs = () if given.teacher is not None else teacher_runs(job.config)
    if runs:
        make_links(job.config, session, given)
        nets = [cast(FeatureNet, net) for net in members(job.teacher)]
        made = zip(nets, runs, strict=True)
        about = about_all([_made_member(net, one, session, given) for net, one in made])
    else:
        about = about_teacher(job.config, given.teacher)
    return Teacher(job.teacher, session.device, job.queries), about


def _made_member(
    net: FeatureNet, config: RunConfig, session: Session, given: Given
) -> dict[str, Any]:
    """Gives a network the weights of the run that makes it; what it is."""
    made = run(config, session, Given(data=given.data), role="teacher")
    folder = RunDir(Path(made.path))
    try:
        load_weights(net.net, folder.student, "teacher")
    except SettingError as error:
        raise FskdError(f"{error}; delete {folder.path} to train the teacher anew") from None
    return {
        "name": config.student,
        "key": made.key,
        "n_train": made.n_train,
        "run": folder.path.name,
        **({"doubts": made.doubts} if made.doubts else {}),
    }


def rank_by_teacher(job: Job, session: Session, given: Given, seconds: dict[str, float]) -> Ranking:
    """The order that a sampler makes from a teacher's outputs, kept in ``<out>/splits``.

    The teacher is made by a run of its own if need be. What it is asked here is no part of the
    training's queries.

    Args:
        job: The run; its subset is a stand-in.
        session: Shared by the runs of this process.
        given: Parts handed over from Python.
        seconds: Gets the time of the teacher and of the order (``split``).
    """
    begun = time.perf_counter()
    config, images = ranking_run(job.config), job.data.train
    asked = job._replace(config=config, teacher=make_source(config, job.data, given.teacher))
    teacher, about = make_teacher(asked, session, given)
    if teacher is None or about is None:
        raise RuntimeError("a teacher was asked for")
    seconds["teacher"] = time.perf_counter() - begun
    begun = time.perf_counter()
    who = {"name": str(about["name"]), "key": str(about["key"])}
    name = split_name(config.data).removesuffix(".npz")
    path = session.out / "splits" / f"{name}-{mark(who, images.fingerprint)}.npz"
    if session.main:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write(path, _rank_now(config, teacher.net, images, who, session))
    session.fabric.barrier()
    try:
        ranking = read(path)
        check_data(ranking, images.fingerprint, len(images))
    except DataError as error:
        raise FskdError(f"{error}; delete {path} to make it anew") from None
    seconds["split"] = time.perf_counter() - begun
    return ranking


def _rank_now(
    config: RunConfig, net: nn.Module, images: ImageSet, who: dict[str, str], session: Session
) -> Ranking:
    begun, data = time.perf_counter(), config.data
    sampler = make_sampler(data)
    whose = (who["key"], images.fingerprint, sampler.reads)
    if session.last_pool is None or session.last_pool[0] != whose:
        filled = fill_pool(net, images, sampler.reads, session.device, session.runtime.workers)
        session.last_pool = (whose, filled)
    pool = session.last_pool[1]
    ranking = rank(data.name, data.sampler.name, sampler, images, data.split_seed, pool)
    seconds = time.perf_counter() - begun
    session.screen.say(
        f"{data.sampler.name} ranked {len(images):,} images by {who['name']} in {seconds:.1f} s"
    )
    return replace(ranking, teacher=who)


def _write(
    job: Job,
    counts: Counts,
    found: dict[str, Any],
    seconds: dict[str, float],
    session: Session,
) -> Result:
    """Writes the result, after all else, then drops the training state."""
    folder = job.folder
    result = Result(
        key=job.config.key(),
        config=job.config.model_dump(mode="json"),
        steps=counts.step,
        epochs=round(counts.student_rows / found["n_train"], 3),
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
    folder.drop_temporaries()  # before the result, after which nobody holds the lock again
    write_text(folder.result, result.to_json())
    folder.clean()
    session.made.add(result.key)
    return result
