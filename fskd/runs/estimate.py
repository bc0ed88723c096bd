"""What a run will cost, known from its settings before anything is trained."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fskd.config import RunConfig
from fskd.data.datasets.base import Extent, datasets, image_set
from fskd.errors import SettingError
from fskd.generators.base import Generator
from fskd.procedures.base import procedure_of
from fskd.runs.batches import batch_maker
from fskd.runs.episodes import first_episode
from fskd.runs.images import load_data
from fskd.runs.prepare import NOTHING_GIVEN, Given, Job, foreseen
from fskd.runs.training import logits_kept
from fskd.teachers.base import members
from fskd.train.batches import BatchMaker
from fskd.train.loop import phase_steps
from fskd.types import Batch, DataSplits, ImageSet


class Cost(NamedTuple):
    """Counts as in a ``Result``.

    Attributes:
        n_train: Training examples.
        steps: Optimiser updates.
        student_rows: Rows through each student.
        teacher_queries: Rows through the teacher in training, a generator's searches included; what
            methods ask when a phase begins is not foreseen, and with ``alternate`` it is the
            expected number.
    """

    n_train: int
    steps: int
    student_rows: int
    teacher_queries: int


def here(config: RunConfig) -> bool:
    """Whether the data are on this machine.

    Raises:
        FskdError: If the data are damaged, or are not where the settings say, or are not here and
            only their files say how large they are.
    """
    try:
        load_data(config)
    except SettingError as error:
        known = datasets.get(config.data.name).extent is not None
        if error.setting != "data.root" or config.data.root is not None or not known:
            raise
        return False
    return True


def stand_in(config: RunConfig) -> Given:
    """Nothing where the data are here; else as many labels, and noise in the place of images."""
    if here(config):
        return NOTHING_GIVEN
    return Given(data=_noise(cast(Extent, datasets.get(config.data.name).extent)))


@lru_cache(maxsize=2)
def _noise(extent: Extent) -> DataSplits:
    noise = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, *extent.size), generator=noise, dtype=torch.uint8)
    classes = [str(k) for k in range(extent.num_classes)]
    flat = (0.5,) * extent.size[0]
    one = image_set(image, [0], classes, flat, flat)
    targets = (torch.arange(n) % extent.num_classes for n in (extent.n_train, extent.n_test))
    return DataSplits(*(_repeated(one, part) for part in targets))


def _repeated(one: ImageSet, targets: Tensor) -> ImageSet:
    """A view of one image for every label; takes no memory."""
    images = cast(Tensor, one.images).expand(len(targets), -1, -1, -1)
    return replace(one, images=images, targets=targets)


def cost(job: Job) -> Cost:
    """The counts of a prepared run, from one batch of every phase."""
    one = procedure_of(job.method.methods.values())
    if one is not None and not one.updates:
        return Cost(len(job.subset.train), 0, 0, 0)
    batches = batch_maker(job, torch.device("cpu"), 0)
    n_kept = logits_kept(job, batches.loader.fixed_views)
    n, rows, queries, start = len(job.subset.train), 0.0, 0.0, 0
    phases = job.method.stretches()
    for phase, steps in zip(phases, phase_steps(phases, job.steps), strict=True):
        batch = batches.batch(start, phase)
        seen = len(batch.inputs)
        known = n_kept / n * real_rows(job, batch, phase.generated)
        rows += steps * seen * phase.trained
        queries += steps * (seen - known) * sum(run.asks for run in phase.runs)
        if phase.generated:
            queries += _searched(job.generator, batches, range(start, start + steps))
        start += steps
    if (own := foreseen(job)) is not None:
        queries, n_kept = own, 0
    if job.teacher is not None:
        queries = (queries + n_kept) * len(members(job.teacher))
    return Cost(n, job.steps, round(rows), round(queries))


def check_queries(job: Job, world: int = 1) -> None:
    """SettingError if training will ask the teacher about more rows than it may.

    Of an episodic run the training on each episode counts for itself.

    Args:
        job: The run.
        world: Number of processes; each of them counts only what it asks itself.
    """
    if job.queries is None or job.teacher is None:
        return
    if world > 1:
        raise SettingError("teacher.queries", job.queries, f"one process instead of {world}")
    planned = cost(job if job.config.data.episodic is None else first_episode(job)).teacher_queries
    if planned > job.queries:
        accepted = f"at least {planned:,}, the rows that these settings ask the teacher about"
        raise SettingError("teacher.queries", job.queries, accepted)


def _searched(generator: Generator | None, batches: BatchMaker, steps: range) -> int:
    """Rows that a generator asks about when an epoch begins."""
    if generator is None or not generator.asks:
        return 0
    epochs = sorted({batches.epoch(step) for step in steps})
    return sum(
        generator.passes(before, epoch) * batches.pass_rows(epoch)
        for before, epoch in pairwise(epochs)
    )


def real_rows(job: Job, batch: Batch, generated: bool) -> float:
    """Real rows of a step, or their expectation."""
    if not generated or job.generator is None:
        return batch.n_real
    return job.generator.schedule.expected(job.rows.real, batch.n_real)
