"""Images that a procedure made: the teacher's answers are kept, and the student learns from them.

All lies in one folder beside the run until that is finished, so that a killed run asks nothing
twice: the images and the answers under each name, and the student after the last training.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fskd.data.augment import normalise
from fskd.data.loader import chunks, rows_at_once
from fskd.procedures.base import Labelled
from fskd.results.store import replacing
from fskd.runs import evaluate
from fskd.runs.prepare import Job
from fskd.runs.session import Session
from fskd.teachers.base import Teacher
from fskd.teachers.table import Table
from fskd.train.checkpoint import load_state, save_state
from fskd.train.watch import Counts
from fskd.types import ImageSet

ROWS = 256  # answers in a file: those that a kill may lose


def pixels(job: Job, device: torch.device) -> Tensor:
    """The subset's images in order, uint8 (n, C, H, W) on the CPU."""
    source = job.data.train
    if isinstance(source.images, Tensor):
        return source.images[job.subset.train]
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (source.mean, source.std))
    seen = (inputs.cpu() for inputs, _ in chunks(source, device, job.subset.train))
    return torch.cat([((part * std + mean) * 255).round().to(torch.uint8) for part in seen])


def label(
    job: Job, session: Session, teacher: Teacher, name: str, make: Callable[[], Tensor]
) -> Labelled:
    """Images and answers under a name: those that are kept, else made and asked about."""
    folder = job.folder.asked
    folder.mkdir(exist_ok=True)
    images = _kept(folder / f"{name}.safetensors", make)
    answers, title = list[Tensor](), f"teacher on the images '{name}'"
    with session.screen.passing(title, len(images)) as seen:
        for number, part in enumerate(images.split(ROWS)):
            asked = False

            def ask(part: Tensor = part) -> Tensor:
                nonlocal asked
                asked = True
                return _ask(job, session, teacher, part)

            answers.append(_kept(folder / f"{name}-{number}.safetensors", ask))
            if not asked:
                teacher.recall(len(part))
            seen(len(part))
    return Labelled(images, torch.cat(answers))


def _ask(job: Job, session: Session, teacher: Teacher, images: Tensor) -> Tensor:
    """Probabilities (rows, K) on the CPU."""
    rows, found = rows_at_once(job.data.train.size, session.device), list[Tensor]()
    for part in images.split(rows):
        inputs = normalise(part.to(session.device), job.data.train)
        with session.fabric.autocast():
            logits = teacher.ask(inputs).logits
        found.append(logits.float().softmax(1).cpu())
    return torch.cat(found)


def _kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in a file, which is made and written if there is none."""
    try:
        return safetensors.torch.load_file(path)["rows"]
    except (OSError, KeyError, safetensors.SafetensorError):
        rows = make().cpu().contiguous()
    with replacing(path) as temporary:
        safetensors.torch.save_file({"rows": rows}, temporary)
    return rows


def _as_set(source: ImageSet, images: Tensor, targets: Tensor) -> ImageSet:
    return replace(source, images=images, targets=targets, fingerprint="made by a procedure")


def predict(job: Job, device: torch.device, images: Tensor) -> Tensor:
    """The student's logits in eval mode, float32 (m, K) on the CPU."""
    nobody = torch.zeros(len(images), dtype=torch.int64)
    return evaluate.predict(job.students[0], _as_set(job.data.train, images, nobody), device)


def on_labelled(job: Job, made: Labelled, steps: int) -> Job:
    """The run with other images, and a table of their answers for its teacher.

    The labels are the teacher's, too: nothing learns from them, but the log tells how far they are.
    """
    everything, nothing = torch.arange(len(made.images)), torch.empty(0, dtype=torch.int64)
    train = _as_set(job.data.train, made.images, made.probs.argmax(1))
    return job._replace(
        data=job.data._replace(train=train),
        subset=job.subset._replace(train=everything, val=nothing, left=nothing),
        teacher=Table(made.probs),
        steps=steps,
    )


class Trainings:
    """Which trainings of a run are finished, in this attempt or in an earlier one.

    Args:
        job: The run.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._number = job, 0

    def begin(self) -> bool:
        """Whether the next training is still to be made."""
        self._number += 1
        return self._number > self._last()

    def end(self, counts: Counts) -> Counts:
        """Keeps the student after a training, or gives it what was kept.

        Args:
            counts: Of the run so far.

        Returns:
            The counts as they were after that training, if it was the last one of an attempt.
        """
        job, last = self._job, self._last()
        if self._number < last:
            return counts
        if self._number == last and (state := load_state(self._file(last))) is not None:
            job.task().load_state_dict(state.task)
            return state.counts
        # In this order: a state that a kill leaves is then never taken for the next training's.
        job.folder.state.unlink(missing_ok=True)
        save_state(self._file(self._number), job.task(), [], counts, {})
        self._file(last).unlink(missing_ok=True)
        return counts

    def _file(self, number: int) -> Path:
        return self._job.folder.asked / f"trained-{number}.ckpt"

    def _last(self) -> int:
        """Number of the last finished training; 0 for none."""
        names = (path.stem for path in self._job.folder.asked.glob("trained-*.ckpt"))
        return max((int(name.rpartition("-")[2]) for name in names), default=0)
