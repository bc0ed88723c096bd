"""How long runs take on this machine, from a few steps of every kind of run."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fskd.config import RunConfig
from fskd.data.loader import chunks
from fskd.methods.words import LOGITS
from fskd.raw import SIZE
from fskd.runs.batches import batch_maker
from fskd.runs.episodes import first_episode
from fskd.runs.estimate import Cost, cost, stand_in
from fskd.runs.evaluate import N_PATHS, predict
from fskd.runs.measure import TRAIN_POINTS
from fskd.runs.prepare import Job, prepare
from fskd.runs.ranking import COMPUTE
from fskd.runs.training import logits_kept
from fskd.teachers.base import Source, Teacher, opaque
from fskd.train.alone import AnyFabric
from fskd.train.loop import Training, fit
from fskd.train.watch import Counts, Watch
from fskd.types import Outputs, TapShapes

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
    job = prepare(config, Path(), given)
    return job if config.data.episodic is None else first_episode(job)


def _kind(config: RunConfig) -> str:
    """What the time of a step depends on."""
    dump = config.model_dump(mode="json", exclude={"seed", "budget", "inputs_sha256"})
    chosen = {*SIZE, "split_seed", "splits", "split_file", "val", "sampler"}
    for name in chosen - ({"sampler"} if config.data.episodic else set()):
        del dump["data"][name]
    dump["teacher"] = dump["teacher"] and dump["teacher"]["name"]
    return str(dump)


class _Silent(Source):
    """Stands for a black box whose answers take no time."""

    kind = "a black box"
    classes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("classes", torch.zeros(num_classes), persistent=False)

    def forward(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        return Outputs(logits=self.classes.expand(len(inputs), -1))

    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        return TapShapes((len(self.classes),), (), (), ())

    def restricted(self, classes: Tensor) -> Source:
        return _Silent(len(classes))


def _rates(job: Job, fabric: AnyFabric) -> Rates:
    device, source = fabric.device, job.teacher
    if source is not None and opaque(source):
        source = _Silent(job.data.train.num_classes)  # answers may cost, and nobody knows how long
        job = job._replace(teacher=source)
    teacher = None if source is None else Teacher(source, device)
    for net in filter(None, (*job.students, job.teacher)):
        net.to(memory_format=torch.channels_last)  # as the default of runtime.channels_last
    some = job.subset.train[:IMAGES]
    if teacher is not None and logits_kept(job, not job.config.data.augment.active):
        images = (images for images, _ in chunks(job.data.train, device, some))
        teacher.remember(images, len(some), len(some))
    step = _per_call(lambda n: _train(job, teacher, fabric, n), fabric)

    def per_row(net: nn.Module | None) -> float:
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
    batches = batch_maker(job, fabric.device, most=IMAGES)
    optim = config.optim.model_copy(update={"lr": 1e-6})
    watch = _Unwatched(fabric, Counts(), lambda _: None, lambda *_: None)
    fit(Training(job.task(), teacher, batches, steps, optim, fabric, config.seed, watch))
