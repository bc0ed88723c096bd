"""An episodic run: a student of its own for every episode, trained by the ordinary loop.

An episode is a little data set (support to train on, queries to be tested on) and a teacher
restricted to its classes. Finished episodes are lines of ``episodes.jsonl``, so a run that was
killed goes on within the episode where it was.
"""

import copy
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fskd.config import RunConfig
from fskd.data.samplers.episodic import Episode, EpisodicSettings, draw_episodes
from fskd.errors import FskdError, SettingError, TrainingError
from fskd.resolve import procedure
from fskd.results.stats import half_width, spread
from fskd.results.store import RunDir, write_text
from fskd.runs.measure import measure, versions
from fskd.runs.prepare import Given, Job, build
from fskd.runs.ranking import COMPUTE, known_ranking
from fskd.runs.screen import Screen
from fskd.runs.session import Session
from fskd.runs.teacher import Kind
from fskd.runs.track import Tracks
from fskd.runs.training import save_config, train
from fskd.seeding import derive
from fskd.settings import FULL_SAMPLER
from fskd.teachers.base import Teacher, restrict
from fskd.train.watch import Counts
from fskd.types import DataSplits, ImageSet, LazyImages

Record = dict[str, Any]

# Points between training points for each episode; their mean is over all episodes.
N_PATHS = 128

MEASURED = (
    "top1", "top5", "nll", "ece", "train_top1", "agreement", "tv_train", "tv_test", "tv_paths",
)  # fmt: skip


def check_episodic(config: RunConfig, given: Given) -> None:
    """SettingError where examples, teacher or students cannot serve an episodic run."""
    if config.data.episodic is None:
        return
    if config.data.split_file is not None:
        accepted = "none with episodic, which draws the examples of every episode"
        raise SettingError("data.split_file", f"'{config.data.split_file}'", accepted)
    if procedure(config.method) is not None:
        accepted = "a method of one loop with episodic"
        raise SettingError("method", f"'{config.method.name}'", accepted)
    teacher = config.teacher
    while teacher is not None and given.teacher is None and teacher.checkpoint is None:
        if teacher.data == "subset":
            accepted = "'full' with episodic, whose subset is new in every episode"
            raise SettingError("teacher.data", "'subset'", accepted)
        teacher = teacher.teacher
    if given.students:
        accepted = "a network's name with episodic, which needs a new one for every episode"
        raise SettingError("student", "a network", accepted)


def train_episodes(
    job: Job,
    session: Session,
    teacher: Teacher | None,
    about: dict[str, Any] | None,
    seconds: dict[str, float],
) -> tuple[Counts, dict[str, Any]]:
    """Trains and measures a student on every episode.

    Args:
        job: The run, prepared for all classes.
        session: Device, screen and saving.
        teacher: With its weights, or None.
        about: Its name and key, or None.
        seconds: Time of each part; that of evaluation is added.

    Returns:
        Cost of one episode (the time of all), and the measured fields of a ``Result``.
    """
    settings = cast(EpisodicSettings, job.config.data.episodic)
    shots = cast(int, job.config.data.shots)
    episodes = list(draw_episodes(job.data, settings, shots, job.config.data.split_seed))
    path = job.folder.episodes
    records = session.fabric.broadcast(_finished(path) if session.main else [])
    if session.main:
        save_config(job)
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    quiet = copy.copy(session)
    quiet.screen = Screen()
    title = f"student {job.config.student} {job.config.method.name} {job.config.data.size_label}"
    session.screen.begin(
        f"{title} seed {job.config.seed}, a step is an episode", len(episodes), len(records)
    )
    for number in range(len(records), len(episodes)):
        record = _one(job, number, episodes[number], quiet, teacher, about)
        if session.main:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            shutil.rmtree(_folder(job, number).path)
        session.fabric.barrier()
        records.append(record)
        mean = statistics.fmean(r["top1"] for r in records)
        shown = {"step": number + 1, "phase": "episode", "top1": mean}
        session.screen.step(shown, len(episodes), record["counts"]["student_rows"])
    session.screen.end()
    found = _summary(job, records, episodes)
    if about is not None:
        top1 = _mean([record["teacher_top1"] for record in records])
        found["teacher"] = about if top1 is None else {**about, "top1": top1}
    counts = _counts(records)
    seconds |= {"train": counts.seconds, "evaluate": sum(r["evaluate"] for r in records)}
    return counts, found


def _folder(job: Job, number: int) -> RunDir:
    return RunDir(job.folder.path / f"episode{number}")


def _finished(path: Path) -> list[Record]:
    """Records of finished episodes; a line that was cut off by a kill does not count."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not isinstance(record, dict) or record.get("episode") != len(records):
                raise FskdError(f"{path}: not a list of episodes; --force starts anew")
            records.append(record)
    return records


def _one(
    job: Job,
    number: int,
    episode: Episode,
    session: Session,
    teacher: Teacher | None,
    about: dict[str, Any] | None,
) -> Record:
    """Trains and measures one student."""
    net = None if teacher is None else restrict(teacher.net, episode.classes)
    task = episode_job(job, number, episode, net)
    task.folder.path.mkdir(exist_ok=True)
    asked = None if net is None else Teacher(net, session.device, job.queries)
    record = None
    try:
        counts = train(task, session, asked, "student", Tracks(session.screen.say))
        if session.main:
            begun = time.perf_counter()
            # Every episode asks about images of its own, so nothing is kept beside the teacher.
            whose = None if about is None else _unkept(about)
            found, _ = measure(task, asked, whose, session, N_PATHS)
            teacher_top1 = found.get("teacher", {}).get("top1")
            record = {
                "episode": number,
                "classes": list(task.data.train.classes),
                **{name: found.get(name) for name in MEASURED},
                "teacher_top1": teacher_top1,
                "peers_top1": found["peers_top1"],
                "measured": found["measured"],
                "searches": found.get("searches", []),
                "phases": found["phases"],
                "counts": asdict(counts),
                "evaluate": time.perf_counter() - begun,
            }
    except TrainingError as error:
        raise TrainingError(f"episode {number}: {error}") from None
    return cast(Record, session.fabric.broadcast(record))


def _unkept(about: dict[str, Any]) -> dict[str, Any]:
    """What a teacher is, without the folders beside whose weights its answers are kept."""
    found = {name: value for name, value in about.items() if name != "run"}
    if "members" in found:
        found["members"] = [_unkept(member) for member in found["members"]]
    return found


def first_episode(job: Job) -> Job:
    """The training of the first episode of an episodic run."""
    data, settings = job.config.data, cast(EpisodicSettings, job.config.data.episodic)
    episode = next(draw_episodes(job.data, settings, data.shots or 0, data.split_seed))
    teacher = None if job.teacher is None else restrict(job.teacher, episode.classes)
    return episode_job(job, 0, episode, teacher)


def episode_job(job: Job, number: int, episode: Episode, teacher: Kind | None) -> Job:
    """The training of one episode, ready to start.

    Args:
        job: The episodic run, prepared for all classes.
        number: Of the episode.
        episode: Its examples.
        teacher: Restricted to its classes, or None.
    """
    settings = cast(EpisodicSettings, job.config.data.episodic)
    data = episode_data(job.data, episode, settings.query_split)
    config = episode_config(job.config, number)
    ranking = known_ranking(config, data.train)
    return build(config, data, _folder(job, number), Given(teacher=teacher), ranking)


def episode_config(config: RunConfig, number: int) -> RunConfig:
    """The settings of one episode's training: all of the support, and a seed of its own."""
    whole = {"sampler": FULL_SAMPLER, "shots": None, "split_seed": 0, "splits": COMPUTE}
    update = {
        "data": config.data.model_copy(update=whole),
        "seed": derive(config.seed, "episode", number),
    }
    return config.model_copy(update=update)


def episode_data(data: DataSplits, episode: Episode, query_split: str) -> DataSplits:
    """Support and queries of one episode as the parts of a data set of N classes."""
    asked = data.test if query_split == "test" else data.train
    return DataSplits(
        _part(data.train, episode.support, episode.classes),
        _part(asked, episode.queries, episode.classes),
    )


class _Chosen:
    """Some of the images that stay on disk."""

    def __init__(self, images: LazyImages, positions: Tensor) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, index: int) -> Any:
        return self.images.load(int(self.positions[index]))


def _part(images: ImageSet, positions: Tensor, classes: Tensor) -> ImageSet:
    """The images at some positions, their classes renumbered in the order of ``classes``."""
    whole = images.images
    identity = repr((images.fingerprint, positions.tolist(), classes.tolist()))
    return replace(
        images,
        images=whole[positions] if isinstance(whole, Tensor) else _Chosen(whole, positions),
        targets=(images.targets[positions, None] == classes).long().argmax(1),
        classes=tuple(images.classes[i] for i in classes.tolist()),
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    )


def _counts(records: Sequence[Record]) -> Counts:
    """What one episode cost, and the time of all."""
    counts = [Counts(**record["counts"]) for record in records]
    return Counts(
        counts[0].step,
        counts[0].student_rows,
        round(statistics.fmean(c.teacher_queries for c in counts)),
        sum(c.seconds for c in counts),
        {name: statistics.fmean(c.last[name] for c in counts) for name in counts[0].last},
    )


def _summary(job: Job, records: Sequence[Record], episodes: Sequence[Episode]) -> dict[str, Any]:
    """The measured fields of a ``Result``: means over episodes."""
    data, settings = job.data, cast(EpisodicSettings, job.config.data.episodic)
    asked = data.test if settings.query_split == "test" else data.train
    drawn = repr([[part.tolist() for part in episode] for episode in episodes])
    top1 = [record["top1"] for record in records]
    found = {name: _mean([record[name] for record in records]) for name in MEASURED}
    return {
        **found,
        "n_train": len(episodes[0].support),
        "num_classes": settings.ways,
        "data_sha256": data.train.fingerprint,
        "test_sha256": asked.fingerprint,
        "split_sha256": hashlib.sha256(drawn.encode()).hexdigest(),
        "versions": versions(),
        "phases": records[0]["phases"],
        "peers_top1": [
            statistics.fmean(peers)
            for peers in zip(*(record["peers_top1"] for record in records), strict=True)
        ],
        "measured": {
            name: {
                what: statistics.fmean(r["measured"][name][what] for r in records)
                for what in values
            }
            for name, values in records[0].get("measured", {}).items()
        },
        "searches": [
            {"episode": record["episode"], **search}
            for record in records
            for search in record.get("searches", [])
        ],
        "episodes": {
            "n": len(top1),
            "std": spread(top1).std,
            "interval": half_width(top1),
            "top1": top1,
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None
