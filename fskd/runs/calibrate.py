"""How long runs take on this machine, from a few steps of every kind of run."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fskd.config import RunConfig
from fskd.data.loader import chunks, make_loader
from fskd.data.samplers.episodic import draw_episodes
from fskd.models.restricted import Restricted
from fskd.models.taps import FeatureNet
from fskd.models.teacher import Teacher
from fskd.raw import SIZE
from fskd.runs.episodes import episode_job
from fskd.runs.estimate import Cost, cost, stand_in
from fskd.runs.evaluate import N_PATHS, predict
from fskd.runs.measure import TRAIN_POINTS
from fskd.runs.prepare import Job, prepare
from fskd.runs.ranking import COMPUTE
from fskd.runs.training import logits_kept
from fskd.train.alone import AnyFabric
from fskd.train.batches import BatchMaker
from fskd.train.loop import Training, fit
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch

# Seconds to spend on one measurement, in how many blocks, and most repetitions in a block.
SECONDS, BLOCKS, REPEATS = 0.6, 5, 20
# Training images that are enough for it.
IMAGES = 1024
# Seconds that a run takes beside steps and evaluation: building networks, writing files.
OVERHEAD = 0.3


class Rates(NamedTuple):
    """Seconds that parts of one kind of run take.

    Attributes:
        step: An optimiser update, generation and the teacher's answers included.
        student_row: One image through a student in evaluation.
        teacher_row: One image through the teacher.
        tested: Test images.
    """

    step: float
    student_row: float
    teacher_row: float
    tested: int


class Planner:
    """Costs and times of runs; kinds of runs that were met before are not measured again.

    Args:
        fabric: Device and precision; None if only costs are wanted.
    """

    def __init__(self, fabric: AnyFabric | None = None) -> None:
        self.fabric = fabric
        self._costs: dict[str, Cost] = {}
        self._rates: dict[str, Rates] = {}

    def cost(self, config: RunConfig) -> Cost:
        """Counts of a run; of an episodic one those of an episode, as its result has them.

        Raises:
            FskdError: As ``prepare`` does, for example if a class has no example.
        """
        data = config.data.model_copy(update={"split_seed": 0})
        kind = config.model_copy(update={"seed": 0, "data": data}).model_dump_json()
        if kind not in self._costs:
            self._costs[kind] = cost(_job(config))
        return self._costs[kind]

    def seconds(self, config: RunConfig) -> float:
        """About how long one process takes for a run.

        Without the run of its teacher and without ranking all examples by the teacher's outputs.
        """
        if self.fabric is None:
            raise ValueError("a planner without a fabric measures nothing")
        kind = _kind(config)
        if kind not in self._rates:
            self._rates[kind] = _rates(_job(config), self.fabric)
        rates, counts = self._rates[kind], self.cost(config)
        points = min(counts.n_train, TRAIN_POINTS) + N_PATHS
        evaluated = (rates.tested + points) * rates.student_row
        # Once for the logits that are kept, once for fidelity; those on the test images are shared.
        asked = (counts.n_train + points) * rates.teacher_row
        once = OVERHEAD + counts.steps * rates.step + evaluated + asked
        return once * (1 if config.data.episodic is None else config.data.episodic.episodes)


def _job(config: RunConfig) -> Job:
    """The run, or the first episode of an episodic one."""
    given = stand_in(config)
    if given.data is not None:  # no split file belongs to noise
        places = {"splits": COMPUTE, "split_file": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=places)})
    job, data = prepare(config, Path(), given), config.data
    if data.episodic is None:
        return job
    episode = next(draw_episodes(job.data, data.episodic, data.shots or 0, data.split_seed))
    teacher = None if job.teacher is None else Restricted(job.teacher, episode.classes)
    return episode_job(job, 0, episode, teacher)


def _kind(config: RunConfig) -> str:
    """What the time of a step depends on."""
    dump = config.model_dump(mode="json", exclude={"seed", "budget", "inputs_sha256"})
    chosen = {*SIZE, "split_seed", "splits", "split_file", "val", "sampler"}
    for name in chosen - ({"sampler"} if config.data.episodic else set()):
        del dump["data"][name]
    dump["teacher"] = dump["teacher"] and dump["teacher"]["name"]
    return str(dump)


def _rates(job: Job, fabric: AnyFabric) -> Rates:
    device = fabric.device
    teacher = None if job.teacher is None else Teacher(job.teacher, device)
    for net in filter(None, (*job.students, job.teacher)):
        net.to(memory_format=torch.channels_last)  # as the default of runtime.channels_last
    some = job.subset.train[:IMAGES]
    if teacher is not None and logits_kept(job, not job.config.data.augment.active):
        images = (images for images, _ in chunks(job.data.train, device, some))
        teacher.remember(images, len(some), len(some))
    step = _per_call(lambda n: _train(job, teacher, fabric, n), fabric)

    def per_row(net: FeatureNet | None) -> float:
        if net is None:
            return 0.0
        few = torch.arange(min(len(job.data.test), 64)).repeat(4)

        def passes(n: int) -> None:
            for _ in range(n):
                predict(net, job.data.test, device, few)

        return _per_call(passes, fabric) / len(few)

    students = sum(per_row(net.to(device)) for net in job.students)
    return Rates(step, students, per_row(job.teacher), len(job.data.test))


def _per_call(call: Callable[[int], Any], fabric: AnyFabric) -> float:
    """Seconds of one call, ``call(n)`` making n of them; the first ones do not count."""

    def timed(n: int) -> float:
        begun = time.perf_counter()
        call(n)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        return time.perf_counter() - begun

    timed(1)
    repeats = min(max(round(SECONDS / BLOCKS / timed(1)), 1), REPEATS)
    # The median, since other processes now and then stop this one for long.
    return statistics.median(timed(repeats) for _ in range(BLOCKS)) / repeats


class _Unwatched(Watch):
    """Counts steps and nothing else: what untrained networks lose is no news."""

    def look(self, *_: Any) -> None:
        self._pending.clear()


def _train(job: Job, teacher: Teacher | None, fabric: AnyFabric, steps: int) -> None:
    """Some steps, with a learning rate that does no harm."""
    config = job.config
    loader = make_loader(
        job.data.train, job.subset.train[:IMAGES], job.real_rows, config.data.augment,
        config.seed, fabric.device,
    )  # fmt: skip
    batches = BatchMaker(loader, job.generator, job.method, job.n_generated, config.seed)
    optim = config.optim.model_copy(update={"lr": 1e-6})
    watch = _Unwatched(fabric, Counts(), lambda _: None, lambda *_: None)
    task = DistillTask(job.students, job.method)
    fit(Training(task, teacher, batches, steps, optim, fabric, config.seed, watch))
