"""NST: the discrepancy number by number, and its limits."""

import math

import pytest
import torch
from recorded import maps
from torch import Tensor

from fskd.methods.nst import selectivity_loss


def vectors(one: Tensor) -> list[list[float]]:
    """Channels of a row at unit length."""
    flat = [channel.flatten().tolist() for channel in one]
    return [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in flat]


def kernel(first: list[list[float]], second: list[list[float]]) -> float:
    """Mean of (u.v)^2."""
    found = [sum(a * b for a, b in zip(u, v, strict=True)) ** 2 for u in first for v in second]
    return sum(found) / len(found)


@pytest.mark.parametrize("rows", [1, 3])
def test_slow_twin(rows: int) -> None:
    """Sum over stages, mean over rows, for unlike widths."""
    student = [maps(rows, 3, 2, 4), maps(rows, 2, 2, 2, seed=1)]
    teacher = [maps(rows, 5, 2, 4, seed=2), maps(rows, 4, 2, 2, seed=3)]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for b in range(rows):
            u, v = vectors(s[b]), vectors(t[b])
            total += (kernel(u, u) + kernel(v, v) - 2 * kernel(u, v)) / rows
    assert selectivity_loss(student, teacher).item() == pytest.approx(total, rel=1e-10)


def test_gradcheck_and_constant_teacher() -> None:
    """Also where the student's map is the larger one; none for the teacher."""
    teacher = [maps(2, 4, 2, 2, seed=1).requires_grad_(True)]
    student = maps(2, 3, 4, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: selectivity_loss([x], teacher), (student,))
    selectivity_loss([student], teacher).backward()
    assert teacher[0].grad is None


def test_limits() -> None:
    """Order, sign and length of channels do not matter; silent channels are finite."""
    one = maps(2, 3, 4, 4)
    same = torch.stack([one[:, 2], -one[:, 0], 7 * one[:, 1]], dim=1)
    assert selectivity_loss([same], [one]).item() == pytest.approx(0, abs=1e-12)
    silent = torch.zeros(2, 3, 4, 4, requires_grad=True)
    selectivity_loss([silent], [one.float()]).backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_full_precision_under_autocast() -> None:
    """Products are not rounded to bfloat16."""
    student, teacher = [maps(2, 3, 4, 4).float()], [maps(2, 3, 4, 4, seed=1).float()]
    expected = selectivity_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selectivity_loss(student, teacher), expected)
