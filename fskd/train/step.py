"""One optimiser update: what the teacher is asked, losses, and who minimises what.

The teacher's answers are made once for everybody who trains on the same rows; each ``Learner`` then
makes its own forward pass, backward passes and updates.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fskd.errors import TrainingError
from fskd.methods.plan import Given, Run, Stretch
from fskd.methods.words import Mode, Player, Term
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.alone import AnyFabric
from fskd.train.optim import build_optimizer, set_lr
from fskd.train.task import DistillTask
from fskd.types import Batch, Outputs, Progress

Question = tuple[str, Mode, bool]  # a run of the teacher but for its taps


def ask(
    teacher: Teacher | None, batch: Batch, stretches: Sequence[Stretch], fabric: AnyFabric
) -> list[tuple[Given, ...]]:
    """What the teacher says to each of several learners, asked once for equal questions.

    Args:
        teacher: The teacher, or None if nobody asks it.
        batch: The rows, the same for all.
        stretches: The phase of every learner.
        fabric: Precision.
    """
    wanted: dict[Question, frozenset[str]] = {}
    for run in (run for stretch in stretches for run in stretch.runs if run.asks):
        question = run.net, run.mode, run.input_grad
        wanted[question] = wanted.get(question, run.taps) | run.taps
    if not wanted:
        return [() for _ in stretches]
    if teacher is None:
        raise TrainingError("a method asks the teacher, and there is none")
    with fabric.autocast():
        found: dict[Question, Given] = {
            (net, mode, grad): teacher.each(batch, taps)
            if net == "teachers"
            else teacher.answer(batch, taps, mode, grad)
            for (net, mode, grad), taps in wanted.items()
        }

    def answer(run: Run) -> Given:
        question = run.net, run.mode, run.input_grad
        given = found[question]
        return given if run.taps == wanted[question] else _only(given, run.taps)

    return [tuple(answer(run) for run in stretch.runs if run.asks) for stretch in stretches]


def _only(given: Given, taps: frozenset[str]) -> Given:
    """The taps that one learner reads."""
    if isinstance(given, Outputs):
        return Outputs(**{name: getattr(given, name) for name in taps})
    return tuple(Outputs(**{name: getattr(one, name) for name in taps}) for one in given)


class Move(NamedTuple):
    """A player in a phase: its optimiser, and the parameters that it trains."""

    name: str
    player: Player
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]


class Learner:
    """Students and methods on their way through a phase.

    Args:
        task: What is trained.
        stretch: The phase, entered.
        optim: The run's optimiser settings.
        fabric: Device, precision and processes.
        before: The learner of the phase before, whose optimisers go on.
    """

    def __init__(
        self,
        task: DistillTask,
        stretch: Stretch,
        optim: OptimConfig,
        fabric: AnyFabric,
        before: "Learner | None" = None,
    ) -> None:
        self.task, self.stretch, self.optim, self.fabric = task, stretch, optim, fabric
        moves: list[Move] = _moves(task, optim) if before is None else _kept(before, task)
        wrapped, *stepping = fabric.setup(task, *(move.optimizer for move in moves))
        self.wrapped = wrapped
        self.moves: list[Move] = [
            move._replace(optimizer=optimizer)
            for move, optimizer in zip(moves, stepping, strict=True)
        ]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One of every player."""
        return [move.optimizer for move in self.moves]

    def update(
        self, batch: Batch, known: Sequence[Given], progress: Progress, rate: float
    ) -> dict[str, Term]:
        """Forward, backward and update.

        Args:
            batch: The rows.
            known: The teacher's answers.
            progress: Where training stands.
            rate: Learning rate divided by its peak.

        Returns:
            All terms, still attached to nothing that is used again.
        """
        terms: dict[str, Term] = self.wrapped(batch, known, progress, self.stretch)
        moving = [move for move in self.moves if move.player.turn(progress.step)]
        losses = [(move, loss) for move in moving if (loss := self._loss(terms, move)) is not None]
        if not losses:
            raise TrainingError("the method has no loss for this batch")
        if len(self.moves) == 1:
            self.fabric.backward(losses[0][1])
        else:
            for left, (move, loss) in enumerate(losses, 1 - len(losses)):
                self.fabric.backward(loss, inputs=move.parameters, retain_graph=left < 0)
        for move, _ in losses:
            set_lr([move.optimizer], rate * self.stretch.lr_scale)
            if self.optim.grad_clip is not None:
                self.fabric.clip_gradients(
                    self.wrapped, move.optimizer, max_norm=self.optim.grad_clip
                )
            move.optimizer.step()
            move.optimizer.zero_grad()
        self.task.average(progress.step)
        return terms

    def _loss(self, terms: Mapping[str, Term], move: Move) -> Tensor | None:
        own = {name: term for name, term in terms.items() if term.by == move.name}
        return total_loss(own, self.task.method.unit) if own else None


def total_loss(terms: Mapping[str, Term], unit: frozenset[str]) -> Tensor:
    """Weighted sum divided by the sum of the unit terms' weights.

    So arms with different terms share an effective learning rate. A term that a batch lacks (no
    generated rows, say) counts in neither.
    """
    total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    divisor = sum(term.weight for name, term in terms.items() if name in unit)
    return total / divisor if divisor > 0 else total


def _kept(before: Learner, task: DistillTask) -> list[Move]:
    """The players of the phase before, who go on with the same parameters.

    Raises:
        ValueError: If this phase trains others, which no optimiser would have.
    """
    known = {id(p) for move in before.moves for p in move.parameters}
    if known != {id(p) for p in task.parameters() if p.requires_grad}:
        raise ValueError("a phase that does not restart trains what the phase before it trains")
    return before.moves


def _moves(task: DistillTask, optim: OptimConfig) -> list[Move]:
    """The players that have something to train in this phase."""
    players, taken = task.method.players, dict[str, dict[int, nn.Parameter]]()
    for name, player in players.items():
        if name != "main":
            found = (p for _, own in task.trained(player.trains) for p in own)
            taken[name] = {id(p): p for p in found if p.requires_grad}
    others = set().union(*taken.values()) if taken else set[int]()
    mine = (p for p in task.parameters() if p.requires_grad and id(p) not in others)
    taken["main"] = {id(p): p for p in mine}
    moves = []
    for name, player in players.items():
        if taken[name]:
            own = list(taken[name].values())
            settings = OptimConfig.model_validate({**optim.model_dump(), **player.optim})
            heads = task.head_parameters() if settings.body_lr != 1 else ()
            optimizer = build_optimizer(own, settings, heads)
            moves.append(Move(name, player, optimizer, own))
    return moves
