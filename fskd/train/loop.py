"""The training loop. It knows phases, batches and named losses, and no method."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fskd.config import OptimConfig
from fskd.errors import TrainingError
from fskd.methods.base import EpochContext, Losses, Phase
from fskd.models.teacher import Teacher
from fskd.seeding import derive
from fskd.train.batches import BatchMaker
from fskd.train.optim import build_optimizers, lr_factor, set_lr
from fskd.train.task import DistillTask
from fskd.types import Outputs, Progress

Report = Callable[[dict[str, Any]], None]


@dataclass
class Counts:
    """What training cost so far; part of the saved state."""

    step: int = 0
    student_rows: int = 0
    teacher_queries: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)


@dataclass
class Saver:
    """When and how the state is saved.

    Attributes:
        save: Writes the state of the task, the optimisers and the counts.
        every: Seconds between saves.
    """

    save: Callable[[DistillTask, list[torch.optim.Optimizer]], None]
    every: float


def phase_steps(phases: tuple[Phase, ...], total: int) -> list[int]:
    """Divides the budget among the phases in proportion to their shares; the last gets the rest.

    Example:
        >>> phase_steps((Phase("head", 1.0), Phase("main", 3.0)), 10)
        [2, 8]
    """
    whole = sum(phase.share for phase in phases)
    steps = [int(total * phase.share / whole) for phase in phases[:-1]]
    return [*steps, total - sum(steps)]


def total_loss(losses: Losses, weights: dict[str, float], unit_terms: frozenset[str]) -> Tensor:
    """Weighted sum divided by the sum of the unit terms' weights.

    So arms with different terms share an effective learning rate. A term that a batch lacks (no
    generated rows, say) counts in neither.
    """
    if not losses:
        raise TrainingError("the method has no loss for this batch")
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    divisor = sum(weights[name] for name in losses if name in unit_terms)
    return total / divisor if divisor > 0 else total


def fit(
    task: DistillTask,
    teacher: Teacher | None,
    batches: BatchMaker,
    steps: int,
    optim: OptimConfig,
    fabric: Fabric,
    seed: int,
    saver: Saver,
    report: Report,
    counts: Counts,
    optimizer_states: list[dict[str, Any]] | None = None,
    log_every: int = 20,
) -> None:
    """Trains for ``steps`` optimiser updates, from ``counts.step`` on.

    Raises:
        TrainingError: If a loss is not finite; names the step, the term and the saved state.
    """
    phases = task.method.phases()
    ends = torch.tensor(phase_steps(phases, steps)).cumsum(0).tolist()
    for phase, start, end in zip(phases, [0, *ends], ends, strict=False):
        if counts.step >= end:
            continue
        task.enter(phase)
        optimizers = build_optimizers(task.student_parameters(), task.method.param_groups(), optim)
        if counts.step > start and optimizer_states is not None:
            for optimizer, state in zip(optimizers, optimizer_states, strict=True):
                optimizer.load_state_dict(state)
        elif counts.step == start:
            torch.manual_seed(derive(seed, "dropout", phase.name, fabric.global_rank))
        _run_phase(
            _PhaseRun(phase, start, end, optim, log_every, report, saver),
            task, teacher, batches, optimizers, fabric, counts,
        )  # fmt: skip


@dataclass(frozen=True)
class _PhaseRun:
    phase: Phase
    start: int
    end: int
    optim: OptimConfig
    log_every: int
    report: Report
    saver: Saver

    def progress(self, step: int, epoch: int) -> Progress:
        fraction = (step - self.start) / max(self.end - self.start, 1)
        return Progress(self.phase.name, fraction, step, epoch)


def _run_phase(
    run: _PhaseRun,
    task: DistillTask,
    teacher: Teacher | None,
    batches: BatchMaker,
    optimizers: list[torch.optim.Optimizer],
    fabric: Fabric,
    counts: Counts,
) -> None:
    phase, reads, method = run.phase, run.phase.reads, task.method
    wrapped, *stepping = fabric.setup(task, *optimizers)
    pending: list[tuple[int, Losses]] = []
    last_save = time.monotonic()
    for step in range(counts.step, run.end):
        progress = run.progress(step, batches.epoch(step))
        if step == 0 or progress.epoch != batches.epoch(step - 1):
            method.on_epoch(_epoch_context(progress, task, teacher, batches))
        batch = batches.batch(step, reads.input_grad)
        with fabric.autocast():
            known = (
                teacher.outputs(batch, reads.teacher, reads.teacher_train, reads.input_grad)
                if teacher is not None
                else Outputs()
            )
        losses = wrapped(batch, known, progress, reads.student)
        loss = total_loss(losses, method.weights(progress), method.unit_terms)
        set_lr(stepping, lr_factor(run.optim, progress.fraction) * phase.lr_scale)
        fabric.backward(loss)
        for optimizer in stepping:
            if run.optim.grad_clip is not None:
                fabric.clip_gradients(wrapped, optimizer, max_norm=run.optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()

        counts.step = step + 1
        counts.student_rows += len(batch.inputs) * fabric.world_size if reads.student else 0
        pending.append((step, {name: term.detach() for name, term in losses.items()}))
        due = run.saver.every <= time.monotonic() - last_save
        if due or counts.step % run.log_every == 0 or counts.step == run.end:
            _flush(pending, counts, progress, stepping, run.report)
        if due and counts.step < run.end:
            counts.teacher_queries = teacher.queries if teacher is not None else 0
            run.saver.save(task, optimizers)
            last_save = time.monotonic()
    counts.teacher_queries = teacher.queries if teacher is not None else 0


def _epoch_context(
    progress: Progress, task: DistillTask, teacher: Teacher | None, batches: BatchMaker
) -> EpochContext:
    """What a method may use at the start of an epoch."""

    def asking(net: nn.Module) -> Callable[[Tensor], Tensor]:
        @torch.no_grad()
        def logits(inputs: Tensor) -> Tensor:
            training = net.training
            net.eval()
            answer: Tensor = net(inputs).logits
            net.train(training)
            return answer

        return logits

    return EpochContext(
        progress,
        tuple(asking(net) for net in task.students),
        None if teacher is None else asking(teacher.net),
        batches.one_pass,
    )


def _flush(
    pending: list[tuple[int, Losses]],
    counts: Counts,
    progress: Progress,
    optimizers: list[torch.optim.Optimizer],
    report: Report,
) -> None:
    """Reads the losses of the last steps from the device at once and checks them."""
    flat = torch.stack([term.float() for _, losses in pending for term in losses.values()]).tolist()
    values = iter(flat)
    for step, losses in pending:
        for name in losses:
            value = next(values)
            if not math.isfinite(value):
                raise TrainingError(f"step {step}: the term '{name}' is {value}")
            counts.last[name] = value
    lr = optimizers[0].param_groups[0]["lr"] if optimizers else 0.0
    report({"step": counts.step, "phase": progress.phase, "lr": lr, **counts.last})
    pending.clear()
