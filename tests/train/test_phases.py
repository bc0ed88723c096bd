"""Phases that begin anew or go on: momentum, schedule and steps."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import SIZE, shapes_of, task_of, tiny

from fskd.methods.base import Method, methods
from fskd.methods.compose import Joint, join
from fskd.methods.words import Phase, Term
from fskd.models.taps import FeatureNet
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.alone import Alone
from fskd.train.loop import spans
from fskd.train.step import Learner, ask
from fskd.types import Batch, Progress, Shapes

K, N, ROWS = 4, 16, 8
CPU = torch.device("cpu")
FABRIC = Alone(CPU)
OPTIM = OptimConfig(lr=0.05)


def small(seed: int) -> FeatureNet:
    return tiny(4, (6, 2, 1), (8, 2, 1), seed=seed)


def large(seed: int = 9) -> FeatureNet:
    return tiny(6, (8, 2, 2), (12, 2, 1), seed=seed)


def rows(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    indices = torch.randperm(N, generator=rng)[:ROWS]
    return Batch(torch.randn(ROWS, *SIZE, generator=rng), indices % K, indices)


def made(names: str, shapes: Shapes, **settings: Any) -> Joint:
    parts = [(name, methods.get(name).Settings(**settings)) for name in names.split("+")]
    return join(parts).build(shapes)


def train(learners: Sequence[Learner], source: Teacher, steps: int = 5) -> list[dict[str, Term]]:
    """Updates on one teacher pass a step; every learner's last terms."""
    last: list[dict[str, Term]] = []
    for step in range(steps):
        batch = rows(step)
        known = ask(source, batch, [one.stretch for one in learners], FABRIC)
        progress = Progress("main", step / steps, step)
        last = [
            one.update(batch, own, progress, 0.7) for one, own in zip(learners, known, strict=True)
        ]
    return last


ARMS = ("kd", "at", "rkd")


class Early(Method):
    """Two phases of the same student, as in ESKD: soft targets, then labels alone."""

    goes_on = True

    @property
    def phases(self) -> Sequence[Phase]:
        soft = Phase("soft", 1.0, objective=frozenset({"ce", "kd"}))
        return soft, Phase(objective=frozenset({"ce"}), restart=not self.goes_on, share=3.0)


class Anew(Early):
    goes_on = False


@pytest.mark.parametrize("cls", [Early, Anew])
def test_a_phase_may_go_on(cls: type[Early], monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum and schedule go on with ``restart=False`` and begin anew without."""
    methods.names()
    monkeypatch.setitem(methods._parts, "early", cls)
    net = small(0)
    method = made("early", shapes_of(net, large(), N), kd_weight=1.0)
    task, stretches = task_of(method, [net]), method.stretches()
    assert [stretch.asks for stretch in stretches] == [True, False]
    found = spans(stretches, 8)
    assert [(span.start, span.end) for span in found] == [(0, 2), (2, 8)]
    schedules = [(span.schedule_start, span.schedule_end) for span in found]
    assert schedules == ([(0, 8), (0, 8)] if cls.goes_on else [(0, 2), (2, 8)])
    task.enter(stretches[0])
    first = Learner(task, stretches[0], OPTIM, FABRIC)
    train([first], Teacher(large(), CPU), 2)
    weight = net.net.get_parameter("fc.weight")
    momentum = first.optimizers[0].state[weight]["momentum_buffer"].clone()
    task.enter(stretches[1])
    second = Learner(task, stretches[1], OPTIM, FABRIC, first if cls.goes_on else None)
    assert (second.optimizers[0] is first.optimizers[0]) is cls.goes_on
    kept = second.optimizers[0].state[weight].get("momentum_buffer")
    assert (kept is not None and torch.equal(kept, momentum)) is cls.goes_on


def test_a_phase_that_goes_on_trains_the_same() -> None:
    """What no optimiser has would never be updated."""
    net = small(0)
    method = made("ce", shapes_of(net, None, N))
    task, (stretch,) = task_of(method, [net]), method.stretches()
    task.enter(stretch._replace(trains=("student.features",)))
    first = Learner(task, stretch, OPTIM, FABRIC)
    task.enter(stretch)
    with pytest.raises(ValueError, match="trains what the phase before it trains"):
        Learner(task, stretch, OPTIM, FABRIC, first)


def test_spans_of_several_phases() -> None:
    """A phase that goes on shares the schedule of the phase before, back to the last restart."""
    (stretch,) = made("ce", shapes_of(small(0), None, N)).stretches()
    kinds = [(1.0, True), (1.0, False), (1.0, True), (1.0, False), (1.0, False)]
    phases = [stretch._replace(share=share, restart=restart) for share, restart in kinds]
    found = spans(phases, 10)
    assert [(one.start, one.end) for one in found] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert [(one.schedule_start, one.schedule_end) for one in found] == [
        (0, 4), (0, 4), (4, 10), (4, 10), (4, 10)
    ]  # fmt: skip
