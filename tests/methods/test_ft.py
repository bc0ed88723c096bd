"""FT: factors number by number, the layers of both translators, and the two phases."""

import math
from typing import Any

import pytest
import torch
from recorded import maps
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.methods.ft import FT, factor_loss
from fskd.types import Outputs


def unit(values: list[float]) -> list[float]:
    """At length 1."""
    return [x / math.sqrt(sum(v * v for v in values)) for x in values]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("factor", ["whole", "attention"])
@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_slow_twin(rows: int, factor: Any, kind: Any) -> None:
    """Mean over the entries of the unit vectors."""
    student, teacher = maps(rows, 3, 2, 4), maps(rows, 3, 2, 4, seed=1)
    found = []
    for b in range(rows):
        vectors = []
        for one in (student[b], teacher[b]):
            flat = one.flatten().tolist()
            if factor == "attention":  # mean of squares over the three channels of 8 pixels
                flat = [sum(flat[c * 8 + p] ** 2 for c in range(3)) / 3 for p in range(8)]
            vectors.append(unit(flat))
        for x, y in zip(*vectors, strict=True):
            found.append(abs(x - y) if kind == "l1" else (x - y) ** 2)
    loss = factor_loss(student, teacher, factor, kind)
    assert loss.item() == pytest.approx(sum(found) / len(found), rel=1e-10)


@pytest.mark.parametrize("factor", ["whole", "attention"])
def test_gradcheck_and_constant_teacher(factor: Any) -> None:
    """Also through pooling; no gradient for the teacher."""
    teacher = maps(2, 3, 2, 2, seed=1).requires_grad_(True)
    student = maps(2, 3, 4, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: factor_loss(s, teacher, factor, "mse"), (student,))
    factor_loss(student, teacher, factor).backward()
    assert teacher.grad is None


def built(c_s: int, c_t: int, size: int = 4, **settings: Any) -> tuple[Any, FT, dict[str, Outputs]]:
    """The method and what networks of unlike depth gave for four rows."""
    sizes = {"student": ((c_s, size, size),), "teacher": ((2, 8, 8), (c_t, 2, 2))}
    method = joint("ft", shapes(*(net(stages=one) for one in sizes.values())), **settings)
    nets = {}
    for name, one in sizes.items():
        stages = tuple(maps(4, *shape, seed=i).float() for i, shape in enumerate(one))
        nets[name] = Outputs(maps(4, 4).float(), stages=stages)
    own = alone(method)
    assert isinstance(own, FT)
    return method, own, nets


def test_phases_and_layers() -> None:
    """The paraphraser learns alone and then stays; widths follow the ratio."""
    method, own, nets = built(3, 6, factor_ratio=0.5, weight=2.0)
    first, second = method.stretches()
    assert (first.share, first.lr_scale) == (0.125, 0.2)
    assert [run.net for run in first.runs] == ["teacher"]
    assert second.trains == ("student", "method.parts.ft.translator")
    assert [len(own.translator), len(own.paraphraser.encoder)] == [9, 6]
    found = speak(method, nets, batch(4), "paraphraser")
    assert weights(found) == {"paraphraser": 1.0}
    goal = nets["teacher"].stages[1]
    again = own.paraphraser(goal)
    torch.testing.assert_close(found["paraphraser"].value, (again - goal).abs().mean())
    assert own.paraphraser.encoder(goal).shape == (4, 3, 2, 2)
    found = speak(method, nets, batch(4))
    assert weights(found) == {"ce": 1.0, "ft": 2.0}
    found["ft"].value.backward()
    assert all(p.grad is not None for p in own.translator.parameters())
    assert all(p.grad is None for p in own.paraphraser.parameters())


def test_one_row_of_one_pixel() -> None:
    """Batch normalisation is undefined: no term."""
    method, _, nets = built(3, 1, size=1)
    few = {name: one.rows(slice(0, 1)) for name, one in nets.items()}
    assert weights(speak(method, few, batch(1))) == {"ce": 1.0}
    assert "ft" in speak(method, nets, batch(4))
