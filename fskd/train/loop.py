"""The training loop. It knows phases, batches and named losses, and no method."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fskd.config import OptimConfig
from fskd.errors import TrainingError
from fskd.methods.base import Losses, Phase, Reads
from fskd.models.taps import LOGITS
from fskd.models.teacher import Teacher
from fskd.seeding import derive, seed_global, torch_generator
from fskd.train.alone import AnyFabric
from fskd.train.batches import BatchMaker
from fskd.train.optim import build_optimizers, lr_factor, set_lr
from fskd.train.task import DistillTask
from fskd.train.watch import Watch
from fskd.types import Batch, EpochContext, Outputs, Progress


class Training(NamedTuple):
    """All that a training needs.

    Attributes:
        task: Students and method.
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


def fit(training: Training, optimizer_states: Sequence[dict[str, Any]] = ()) -> None:
    """Trains through all phases, from ``watch.counts.step`` on.

    Args:
        training: What is trained.
        optimizer_states: Saved states of the current phase's optimisers.

    Raises:
        TrainingError: If a loss is not finite; names the step and the term.
    """
    task, counts = training.task.to(training.fabric.device), training.watch.counts
    phases = task.method.phases()
    start = 0
    for phase, steps in zip(phases, phase_steps(phases, training.steps), strict=True):
        end = start + steps
        if counts.step < end:
            task.enter(phase)
            groups = task.method.param_groups()
            optimizers = build_optimizers(task.student_parameters(), groups, training.optim)
            if counts.step > start:
                for optimizer, state in zip(optimizers, optimizer_states, strict=True):
                    optimizer.load_state_dict(state)
            else:
                counts.last = {}
            _run_phase(training, phase, start, end, optimizers)
        start = end


def _run_phase(
    training: Training,
    phase: Phase,
    start: int,
    end: int,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    task, teacher, batches, _, optim, fabric, seed, watch = training
    method, reads = task.method, phase.reads
    wrapped, *stepping = fabric.setup(task, *optimizers)
    for step in range(watch.counts.step, end):
        done = (step - start) / (end - start)
        progress = Progress(phase.name, done, step, batches.epoch(step))
        if step == 0 or progress.epoch != batches.epoch(step - 1):
            batches.on_epoch(_epoch_context(progress, training))
        batch = batches.batch(progress, reads)
        seed_global(derive(seed, "dropout", step, fabric.global_rank), fabric.device)
        known = _ask(teacher, batch, reads, fabric)
        losses = wrapped(batch, known, progress, reads.student)
        loss = total_loss(losses, method.weights(progress), method.unit_terms)
        set_lr(stepping, lr_factor(optim, done) * phase.lr_scale)
        fabric.backward(loss)
        for optimizer in stepping:
            if optim.grad_clip is not None:
                fabric.clip_gradients(wrapped, optimizer, max_norm=optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
        watch.count(losses, len(batch.inputs) if reads.student else 0)
        watch.look(phase.name, step + 1 == end, task, optimizers, teacher)


def _ask(teacher: Teacher | None, batch: Batch, reads: Reads, fabric: AnyFabric) -> Outputs:
    """The teacher's taps for a batch, in the run's precision."""
    if teacher is None:
        return Outputs()
    with fabric.autocast():
        return teacher.outputs(batch, reads.teacher, reads.teacher_train, reads.input_grad)


def total_loss(losses: Losses, weights: dict[str, float], unit_terms: frozenset[str]) -> Tensor:
    """Weighted sum divided by the sum of the unit terms' weights.

    So arms with different terms share an effective learning rate. A term that a batch lacks (no
    generated rows, say) counts in neither.

    Raises:
        TrainingError: If there is no term.
    """
    if not losses:
        raise TrainingError("the method has no loss for this batch")
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    divisor = sum(weights[name] for name in losses if name in unit_terms)
    return total / divisor if divisor > 0 else total


def phase_steps(phases: Sequence[Phase], total: int) -> list[int]:
    """Divides the budget among the phases in proportion to their shares; the last gets the rest.

    Example:
        >>> phase_steps((Phase("head", 1.0), Phase("main", 3.0)), 10)
        [2, 8]
    """
    whole = sum(phase.share for phase in phases)
    steps = [int(total * phase.share / whole) for phase in phases[:-1]]
    return [*steps, total - sum(steps)]


def _epoch_context(progress: Progress, training: Training) -> EpochContext:
    """What methods and generators may use at the start of an epoch."""
    fabric, teacher, batches = training.fabric, training.teacher, training.batches

    def asking(net: nn.Module) -> Callable[[Tensor, frozenset[str]], Outputs]:
        @torch.no_grad()
        def answer(inputs: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
            mode = net.training
            net.eval()
            with fabric.autocast():
                outputs: Outputs = net(inputs, read)
            net.train(mode)
            return outputs

        return answer

    def ask_teacher(inputs: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        with fabric.autocast():
            return cast(Teacher, teacher).ask(inputs, read)

    return EpochContext(
        progress,
        tuple(asking(net) for net in training.task.students),
        None if teacher is None else ask_teacher,
        lambda: batches.one_pass(progress.epoch),
        torch_generator(training.seed, "epoch", progress.epoch),
    )
