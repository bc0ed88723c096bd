"""The training loop. It knows phases, batches and named losses, and no method."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fskd.methods.plan import Stretch
from fskd.models.modes import in_mode
from fskd.models.taps import LOGITS
from fskd.seeding import derive, seed_global, torch_generator
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.alone import AnyFabric
from fskd.train.batches import BatchMaker
from fskd.train.optim import lr_factor
from fskd.train.step import Learner, ask
from fskd.train.task import DistillTask
from fskd.train.watch import Watch
from fskd.types import Batch, Outputs, Progress, Tools


class Training(NamedTuple):
    """All that a training needs.

    Attributes:
        task: Networks and methods.
        teacher: The frozen teacher, or None.
        batches: Rows of every step.
        steps: Optimiser updates over all phases.
        optim: Optimiser settings.
        fabric: Device, precision and processes.
        seed: Run seed.
        watch: Counts (from which training goes on), checks, logs and saves.
    """

    task: DistillTask
    teacher: Teacher | None
    batches: BatchMaker
    steps: int
    optim: OptimConfig
    fabric: AnyFabric
    seed: int
    watch: Watch


class Span(NamedTuple):
    """Steps of one phase, and of the schedule that it belongs to."""

    start: int
    end: int
    schedule_start: int
    schedule_end: int


def fit(training: Training, optimizer_states: Sequence[dict[str, Any]] = ()) -> None:
    """Trains through all phases, from ``watch.counts.step`` on.

    Args:
        training: What is trained.
        optimizer_states: Saved states of the current phase's optimisers.

    Raises:
        TrainingError: If a loss is not finite; names the step and the term.
    """
    task, counts = training.task.to(training.fabric.device), training.watch.counts
    stretches = task.method.stretches()
    learner: Learner | None = None
    for stretch, span in zip(stretches, spans(stretches, training.steps), strict=True):
        if counts.step >= span.end:
            continue
        task.enter(stretch)
        before = None if stretch.restart else learner
        learner = Learner(task, stretch, training.optim, training.fabric, before)
        if counts.step > span.start:
            for optimizer, state in zip(learner.optimizers, optimizer_states, strict=True):
                optimizer.load_state_dict(state)
        else:
            counts.last = {}
            progress = Progress(stretch.name, 0.0, counts.step, training.batches.epoch(counts.step))
            for voice in stretch.voices:
                task.method.methods[voice.part].begin(tools(progress, training, voice.part))
        _run_phase(training, learner, stretch, span)


def _run_phase(training: Training, learner: Learner, stretch: Stretch, span: Span) -> None:
    task, teacher, batches, _, optim, fabric, seed, watch = training
    relabels, trained = stretch.relabels, stretch.trained
    for step in range(watch.counts.step, span.end):
        done = (step - span.start) / (span.end - span.start)
        progress = Progress(stretch.name, done, step, batches.epoch(step))
        if stretch.generated and (step == 0 or progress.epoch != batches.epoch(step - 1)):
            _begin_epoch(training, progress)
        batch = batches.batch(step, stretch)
        seed_global(derive(seed, "dropout", step, fabric.global_rank), fabric.device)
        if relabels:
            batch = _relabelled(batch, training, stretch, step)
        (known,) = ask(teacher, batch, [stretch], fabric)
        length = span.schedule_end - span.schedule_start
        rate = lr_factor(optim, (step - span.schedule_start) / length)
        terms = learner.update(batch, known, progress, rate)
        watch.count(terms, len(batch.inputs) if trained else 0)
        watch.look(stretch.name, step + 1 == span.end, task, learner.optimizers, teacher)


def _begin_epoch(training: Training, progress: Progress) -> None:
    """The generator may search; all processes go on with what the first one found."""
    generator, fabric = training.batches.generator, training.fabric
    if generator is None:
        return
    generator.on_epoch(tools(progress, training, "epoch", progress.epoch))
    if fabric.world_size > 1 and (state := generator.state_dict()):
        generator.load_state_dict(fabric.broadcast(state))


def _relabelled(batch: Batch, training: Training, stretch: Stretch, step: int) -> Batch:
    """The batch as methods that choose rows and soft labels themselves want it."""
    net, fabric = training.task.net("student"), training.fabric

    @torch.no_grad()
    def guess(inputs: Tensor) -> Tensor:
        with fabric.autocast(), in_mode(net, "batch"):
            return cast(Outputs, net(inputs, LOGITS)).logits

    rng = torch_generator(training.seed, "relabel", step, fabric.global_rank)
    return training.task.method.relabel(batch, guess, rng, stretch)


def phase_steps(phases: Sequence[Stretch], total: int) -> list[int]:
    """Divides the budget among the phases in proportion to their shares; the last gets the rest."""
    whole = sum(phase.share for phase in phases)
    steps = [int(total * phase.share / whole) for phase in phases[:-1]]
    return [*steps, total - sum(steps)]


def spans(stretches: Sequence[Stretch], total: int) -> list[Span]:
    """First and last steps of every phase; phases that do not restart share one schedule."""
    ends = [0]
    for length in phase_steps(stretches, total):
        ends.append(ends[-1] + length)
    firsts = [i for i, stretch in enumerate(stretches) if i == 0 or stretch.restart]
    found = []
    for i in range(len(stretches)):
        first = max(j for j in firsts if j <= i)
        last = min((j for j in firsts if j > i), default=len(stretches))
        found.append(Span(ends[i], ends[i + 1], ends[first], ends[last]))
    return found


def tools(progress: Progress, training: Training, *purpose: str | int) -> Tools:
    """What methods may use when a phase begins, and generators when an epoch does."""
    fabric, batches = training.fabric, training.batches

    @torch.no_grad()
    def ask_net(name: str, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        with fabric.autocast():
            if name == "teacher":
                return cast(Teacher, training.teacher).ask(inputs, taps)
            net: nn.Module = training.task.net(name)
            with in_mode(net, "eval"):
                return cast(Outputs, net(inputs, taps))

    rng = torch_generator(training.seed, *(purpose or ("begin",)))
    pass_over = partial(batches.one_pass, progress.epoch)
    return Tools(progress, ask_net, pass_over, rng, training.watch.say)
