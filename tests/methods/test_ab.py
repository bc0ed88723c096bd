"""AB: costs neuron by neuron, connectors, and the two phases."""

from typing import Any

import pytest
import torch
from recorded import maps
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.methods.ab import AB, boundary_costs, boundary_loss
from fskd.types import Outputs


@pytest.mark.parametrize(("reduction", "rows"), [("sum", 1), ("sum", 3), ("mean", 2)])
def test_slow_twin(reduction: Any, rows: int) -> None:
    """Each neuron by its teacher's sign, at margin 0.7; earlier stages count half."""
    student = [maps(rows, 2, 3, 4), maps(rows, 3, 2, 1, seed=1)]
    teacher = [maps(rows, 2, 3, 4, seed=2), maps(rows, 3, 2, 1, seed=3)]
    total = 0.0
    for stage, (s, t) in enumerate(zip(student, teacher, strict=True)):
        cost = 0.0
        for x, goal in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
            cost += max(0.7 - x, 0.0) ** 2 if goal > 0 else max(0.7 + x, 0.0) ** 2
        cost *= 1 / s.numel() if reduction == "mean" else 0.003 / rows
        total += cost * (0.5, 1.0)[stage]
    found = boundary_loss(student, teacher, 0.7, reduction)
    assert found.item() == pytest.approx(total, rel=1e-10)


def test_edges() -> None:
    """A teacher at exactly 0 is silent; a student beyond the margin costs nothing."""
    teacher = torch.tensor([0.0, -1e-9, 1e-9, 5.0, -5.0])[None, :, None, None]
    student = torch.tensor([0.0, -1.0, 1.0, 3.0, 0.5])[None, :, None, None]
    found = boundary_costs(student, teacher).flatten()
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0, 0.0, 2.25]))


def test_gradcheck_and_constant_teacher() -> None:
    """Gradients reach every stage and no teacher."""
    teacher = [maps(2, 2, 3, 3, seed=i).requires_grad_(True) for i in (2, 3)]
    student = tuple(maps(2, 2, 3, 3, seed=i).requires_grad_(True) for i in (0, 1))
    assert torch.autograd.gradcheck(lambda *s: boundary_loss(s, teacher), student)
    boundary_loss(student, teacher).backward()
    assert all(one.grad is None for one in teacher)


def built(ours: Any, theirs: Any, **settings: Any) -> tuple[Any, AB]:
    """The method for networks with stages of these shapes."""
    method = joint("ab", shapes(net(stages=ours), net(stages=theirs)), **settings)
    own = alone(method)
    assert isinstance(own, AB)
    return method, own


def test_phases_and_connectors() -> None:
    """Equal shapes need no connector; only the first phase has the term and trains them."""
    ours, theirs = ((2, 4, 4), (3, 2, 2)), ((2, 4, 4), (5, 4, 4))
    method, own = built(ours, theirs, weight=2.0)
    assert [len(list(one.children())) for one in own.connectors] == [0, 2]
    first, second = method.stretches()
    assert first.trains == ("student.features", "method.parts.ab.connectors")
    assert first.share == 0.125
    assert second.trains == ("student",)
    nets = {}
    for name, sizes in (("student", ours), ("teacher", theirs)):
        pre = (maps(4, *one, seed=i).float() for i, one in enumerate(sizes))
        nets[name] = Outputs(maps(4, 4), pre=tuple(pre))
    found = speak(method, nets, batch(4), "ab")
    assert weights(found) == {"ab": 2.0}
    pooled = torch.nn.functional.avg_pool2d(nets["teacher"].pre[1], 2)
    guesses = [nets["student"].pre[0], own.connectors[1](nets["student"].pre[1])]
    goals = [nets["teacher"].pre[0], pooled]
    torch.testing.assert_close(found["ab"].value, boundary_loss(guesses, goals))
    assert weights(speak(method, nets, batch(4))) == {"ce": 1.0}


def test_one_row_of_one_pixel() -> None:
    """Without batch normalisation there is a term, with it there is none."""
    for width, names in ((3, {"ab"}), (4, set())):
        method, _ = built(((3, 1, 1),), ((width, 1, 1),))
        nets = {"student": Outputs(maps(1, 4).float(), pre=(maps(1, 3, 1, 1).float(),)),
                "teacher": Outputs(pre=(maps(1, width, 1, 1).float(),))}  # fmt: skip
        assert speak(method, nets, batch(1), "ab").keys() == names
