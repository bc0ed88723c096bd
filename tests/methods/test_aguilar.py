"""Internal representations: cosines number by number, and which stages count when."""

import math
from typing import Any

import pytest
import torch
from recorded import maps
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.methods.aguilar import Aguilar, active, cosine_distance
from fskd.types import Outputs, Progress

SIZES: Any = {"student": ((3, 4, 4), (2, 3, 2)), "teacher": ((3, 2, 2), (4, 5, 1))}


def slow_distance(one: list[float], other: list[float]) -> float:
    """1 - cos of two vectors."""
    lengths = [math.sqrt(sum(x * x for x in v)) for v in (one, other)]
    return 1 - sum(x * y for x, y in zip(one, other, strict=True)) / lengths[0] / lengths[1]


def built(rows: int, **settings: Any) -> tuple[Any, Aguilar, dict[str, Outputs]]:
    """The method for unlike networks, and what they gave."""
    nets = (net(stages=one) for one in SIZES.values())
    method = joint("aguilar", shapes(*nets), **settings).double()
    own = alone(method)
    assert isinstance(own, Aguilar)
    outputs = {}
    for i, (name, one) in enumerate(SIZES.items()):
        stages = tuple(maps(rows, *shape, seed=9 * i + k) for k, shape in enumerate(one))
        outputs[name] = Outputs(maps(rows, 4, seed=i), stages=stages)
    return method, own, outputs


@pytest.mark.parametrize("rows", [1, 3])
def test_slow_twin(rows: int) -> None:
    """Means over pixels, a linear map where widths differ, mean over rows, sum over stages."""
    method, own, nets = built(rows, order="together", weight=2.0)
    weight = own.maps[1].weight.tolist()
    total = 0.0
    for stage in range(2):
        for b in range(rows):
            ours, theirs = (
                [sum(c.flatten().tolist()) / c.numel() for c in nets[name].stages[stage][b]]
                for name in ("student", "teacher")
            )
            if stage == 1:
                ours = [sum(a * x for a, x in zip(row, ours, strict=True)) for row in weight]
            total += slow_distance(ours, theirs) / rows
    found = speak(method, nets, batch(rows), "internal")
    assert weights(found) == {"internal": 2.0}
    assert found["internal"].value.item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("stacked", [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]),
        ("progressive", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]),
        ("together", [[1, 1, 1]] * 4),
    ],
)
def test_order(order: Any, expected: list[list[int]]) -> None:
    """Bottom first, an equal share for each stage."""
    assert [active(order, 3, fraction) for fraction in (0.0, 0.4, 0.7, 1.0)] == expected


def test_stages_that_do_not_count_yet() -> None:
    """They get a gradient of 0; later they get one."""
    method, own, nets = built(3)
    for fraction, moves in ((0.0, False), (0.5, True)):
        progress = Progress("internal", fraction)
        speak(method, nets, batch(3), "internal", progress)["internal"].value.backward()
        assert bool(own.maps[1].weight.grad.any()) is moves


def test_phases() -> None:
    """The internal term is in the first phase only; then come labels and soft targets."""
    method, _, nets = built(3)
    first, second = method.stretches()
    assert (first.name, first.share) == ("internal", 0.5)
    assert second.trains == ("student",)
    assert weights(speak(method, nets, batch(3))) == {"ce": 1.0, "kd": 1.0}


def test_gradcheck_and_limits() -> None:
    """Length does not matter; nothing for the teacher; a silent row is finite."""
    one, goal = maps(3, 5).requires_grad_(True), maps(3, 5, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: cosine_distance(x, goal), (one,))
    cosine_distance(one, goal).backward()
    assert goal.grad is None
    assert cosine_distance(3 * goal, goal).item() == pytest.approx(0, abs=1e-12)
    assert cosine_distance(-goal, goal).item() == pytest.approx(2)
    silent = torch.zeros(2, 5, requires_grad=True)
    cosine_distance(silent, torch.rand(2, 5)).backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()
