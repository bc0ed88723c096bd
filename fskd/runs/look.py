"""A look at what goes into a run, before a student learns from it."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from fskd.data.samplers.base import samplers
from fskd.results.store import RunDir
from fskd.runs.answers import on_train
from fskd.runs.evaluate import predict
from fskd.runs.images import file_lines, read_told
from fskd.runs.prepare import Job
from fskd.runs.session import Session
from fskd.teachers.base import Teacher, opaque

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
    if teacher is None or about is None or opaque(teacher.net) or job.config.data.episodic:
        return []
    from fskd.teachers.doubts import Asked, accuracy, doubts, not_finite  # not before it is needed

    images = job.data.train
    points, logits = on_train(teacher.net, about, images, job.subset.train, session)
    asked = Asked(logits, images.targets[points])
    about["subset_top1"] = accuracy(asked)
    session.screen.say(
        f"teacher {about['name']}: {100 * accuracy(asked):.2f} % on"
        f" {len(points):,} images of the subset"
    )

    def again(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        otherwise = replace(images, mean=mean, std=std)
        return predict(teacher.net, otherwise, session.device, points[:FIRST])

    found = doubts(
        asked,
        images.classes,
        own=(images.mean, images.std),
        recorded=_recorded(job, about, session),
        again=again,
    )
    if (broken := not_finite(teacher.net)) is not None:
        found.insert(0, broken)
    return _said([f"teacher: {line}" for line in found], session)


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
