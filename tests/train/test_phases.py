"""Phases that begin anew or go on: momentum, schedule and steps."""

from collections.abc import Sequence

import pytest
import torch
from learners import CPU, FABRIC, OPTIM, N, large, made, small, train
from tiny import shapes_of, task_of

from fskd.methods.base import Method, methods
from fskd.methods.words import Phase
from fskd.teachers.base import Teacher
from fskd.train.loop import spans
from fskd.train.step import Learner


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
