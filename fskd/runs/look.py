"""A look at what goes into a run, before a student learns from it."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fskd.data.samplers.base import samplers
from fskd.results.store import RunDir
from fskd.runs.answers import TRAIN_POINTS, ask, keep_on_train, on_train
from fskd.runs.evaluate import predict, scores
from fskd.runs.images import file_lines, read_told
from fskd.runs.prepare import Job
from fskd.runs.session import Session
from fskd.teachers.base import Teacher, opaque
from fskd.teachers.ensemble import Ensemble, mean_logits
from fskd.teachers.table import Table

FIRST = 256  # images for which it is asked again under other normalisations


def look_at_inputs(job: Job, session: Session) -> list[str]:
    """Says what was left out or changed of files, weights and networks, and what is doubtful.

    Args:
        job: The run.
        session: Where it is said.

    Returns:
        What is doubtful, a line each.

    Raises:
        FskdError: If runs are to stop at doubts (``--strict``).
    """
    for line in (*file_lines(job.data), *job.notes):
        session.tell_once(line)
    return _said([*session.doubts_of(job.data), *job.doubts], session)


def look_at_teacher(
    job: Job, teacher: Teacher | None, about: dict[str, Any] | None, session: Session
) -> list[str]:
    """Says how good a teacher is on the subset, and what is probably wrong with it.

    A black box is not asked: every answer may cost. What a network is asked here is no part of the
    training's queries.

    Args:
        job: The run.
        teacher: The teacher with its weights, or None.
        about: What it is; gets ``subset_top1``, its accuracy on the subset.
        session: Device, screen, and the teacher's answers.

    Returns:
        What is doubtful, a line each.

    Raises:
        FskdError: If runs are to stop at doubts (``--strict``).
    """
    if teacher is None or about is None or job.config.data.episodic:
        return []
    net, points = teacher.net, job.subset.train[:TRAIN_POINTS]
    if isinstance(net, Table):  # its answers are here already
        found = _doubts(job, net, about, session, points, net.logits[: len(points)])
    elif opaque(net):
        return []
    elif isinstance(net, Ensemble):
        found = _of_members(job, net, about, session)
    else:
        points, logits = on_train(net, about, job.data.train, job.subset.train, session)
        found = _doubts(job, net, about, session, points, logits)
    return _said([f"teacher: {line}" for line in found], session)


def _of_members(job: Job, net: Ensemble, about: dict[str, Any], session: Session) -> list[str]:
    """Doubts of each member: the mean of several hides one that is wrong."""
    images, points, found = job.data.train, job.subset.train[:TRAIN_POINTS], list[str]()
    members, rows = zip(net.members, about["members"], strict=True), list[Tensor]()
    for number, (one, own) in enumerate(members, 1):
        rows.append(ask(one, "teacher on the training images", images, session, points))
        lines = _doubts(job, one, own, session, points, rows[-1])
        found += [f"{own['name']}, number {number}: {line}" for line in lines]
    keep_on_train(about, images, points, mean_logits(rows), session)
    about["subset_top1"] = scores(mean_logits(rows), images.targets[points])["top1"]
    return found


def _doubts(
    job: Job,
    net: nn.Module,
    about: dict[str, Any],
    session: Session,
    points: Tensor,
    logits: Tensor,
) -> list[str]:
    """Doubts of one network or table from its answers for some training images."""
    from fskd.teachers.doubts import Asked, accuracy, doubts, not_finite  # not before it is needed

    images = job.data.train
    asked = Asked(logits.float().cpu(), images.targets[points])
    about["subset_top1"] = accuracy(asked)
    session.screen.say(
        f"teacher {about['name']}: {100 * accuracy(asked):.2f} % on"
        f" {len(points):,} images of the subset"
    )

    def again(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        otherwise = replace(images, mean=mean, std=std)
        return predict(net, otherwise, session.device, points[:FIRST])

    told = read_told(about["checkpoint"]) if "checkpoint" in about else None
    found = doubts(
        asked,
        images.classes,
        own=(images.mean, images.std),
        recorded=_recorded(job, about, session),
        again=None if opaque(net) else again,
        known={} if told is None else {"of its weights": (told.mean, told.std)},
    )
    broken = not_finite(net)
    return ([broken] if broken else []) + found


def inherited(about: dict[str, Any] | None, known: list[str]) -> list[str]:
    """Doubts of the runs that made the teachers, which have been shown; those of a student too.

    Args:
        about: What the teacher is, or None.
        known: Doubts of this run.
    """
    members = [] if about is None else about.get("members", [about])
    return [
        f"in the run of the teacher {one['name']}: {line}"
        for one in members
        for line in one.get("doubts", [])
        if line not in known
    ]


def _said(doubts: list[str], session: Session) -> list[str]:
    for line in doubts:
        session.doubt(line)
    return doubts


def _recorded(job: Job, about: dict[str, Any], session: Session) -> float | None:
    """Test accuracy of a single teacher, if its run or its weights say.

    Examples that were chosen by a teacher's answers may be those that it finds hard.
    """
    if samplers.get(job.config.data.sampler.name).reads:
        return None
    if "run" in about:
        made = RunDir(session.out / about["run"]).load()
        return None if made is None else made.top1
    known = read_told(about["checkpoint"]) if "checkpoint" in about else None
    return None if known is None else known.top1
