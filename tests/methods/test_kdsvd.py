"""KDSVD: correlations from eigenvectors by power iteration, and gradients at the edge."""

import math
from typing import Any

import pytest
import torch
from recorded import maps
from steps import alone, joint, net, shapes
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.kdsvd import directions, singular_loss
from fskd.methods.needs import check_needs


def leading(x: Tensor, n: int) -> tuple[list[float], list[list[float]]]:
    """Singular values and right vectors of a matrix by power iteration and deflation."""
    gram = x.T @ x
    values, vectors = [], []
    for _ in range(n):
        v = torch.ones(len(gram), dtype=torch.float64) + 0.1 * torch.arange(len(gram))
        for _ in range(5000):
            v = gram @ v
            v = v / v.norm()
        size = float(v @ gram @ v)
        gram = gram - size * torch.outer(v, v)
        values.append(math.sqrt(size))
        vectors.append((v if v.sum() >= 0 else -v).tolist())
    return values, vectors


def matrix(one: Tensor, view: str) -> Tensor:
    """A row's map as a matrix."""
    c, h, w = one.shape
    if view == "columns":
        return torch.stack([one[i, j] for i in range(c) for j in range(h)])
    return torch.stack([one[:, i, j] for i in range(h) for j in range(w)])


@pytest.mark.parametrize(("view", "k"), [("pixels", 1), ("pixels", 2), ("columns", 1)])
@pytest.mark.parametrize("rows", [1, 2])
def test_slow_twin(view: Any, k: int, rows: int) -> None:
    """Number by number, for maps that are not square and students of other widths if allowed."""
    sizes_t = [(5, 3, 4), (6, 4, 5)]
    sizes_s = sizes_t if view == "pixels" else [(3, 3, 4), (7, 4, 5)]
    student = [maps(rows, *one, seed=i).abs() for i, one in enumerate(sizes_s)]
    teacher = [maps(rows, *one, seed=9 + i).abs() for i, one in enumerate(sizes_t)]
    total = 0.0
    for b in range(rows):
        found: list[list[list[list[float]]]] = [[], []]
        for s, t in zip(student, teacher, strict=True):
            values, goal = leading(matrix(t[b], view), k)
            length = math.sqrt(sum(v * v for v in values))
            scale = [v / length for v in values]
            _, own = leading(matrix(s[b], view), min(k + 3, matrix(s[b], view).shape[1]))
            ours = []
            for target in goal:
                dots = [sum(a * c for a, c in zip(v, target, strict=True)) for v in own]
                best = max(range(len(own)), key=lambda i: abs(dots[i]))
                ours.append([math.copysign(1, dots[best]) * x for x in own[best]])
            for side, one in zip(found, (ours, goal), strict=True):
                side.append([[x * c for x in v] for v, c in zip(one, scale, strict=True)])
        for d in range(k):
            first, second = ([side[i][d] for side in found] for i in (0, 1))
            for i in range(len(second[0])):
                for j in range(len(first[0])):
                    r = [math.exp(-((y[i] - x[j]) ** 2) / 8)
                         for x, y in zip(first, second, strict=True)]  # fmt: skip
                    total += (r[0] - r[1]) ** 2 / rows
    loss = singular_loss(student, teacher, k, view)
    assert loss.item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 3, 6)])
def test_gradcheck(shape: tuple[int, int, int]) -> None:
    """Vectors of tall and wide matrices, which span only some of their space."""
    x = maps(*shape).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda one: directions(one, 2)[1], (x,))


def test_gradcheck_of_the_loss() -> None:
    """Through alignment and both stages; none for the teacher."""
    teacher = [maps(2, 3, 2, 3, seed=i).requires_grad_(True) for i in (2, 3)]
    student = tuple(maps(2, 3, 2, 3, seed=i).requires_grad_(True) for i in (0, 1))
    assert torch.autograd.gradcheck(lambda *s: singular_loss(s, teacher), student)
    singular_loss(student, teacher).backward()
    assert all(one.grad is None for one in teacher)


def test_equal_singular_values_are_safe() -> None:
    """Silent channels, equal ones and nothing at all: finite gradients."""
    one = maps(2, 6, 4, 4).float().relu()
    one[:, 2:] = 0
    one[:, 1] = one[:, 0]
    for student in (one, torch.zeros_like(one), torch.eye(6).repeat(2, 1, 1)[..., None]):
        leaf = student.clone().requires_grad_(True)
        singular_loss([leaf, leaf], [maps(2, 6, 4, 4, seed=i).float() for i in (1, 2)]).backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_needs() -> None:
    """Pixels need equal channels, columns do not; one stage has no neighbour."""
    two, wider = (net(stages=((c, 4, 4), (c, 2, 2))) for c in (3, 4))
    check_needs("kdsvd", alone(joint("kdsvd", view="columns")).needs, shapes(two, wider))
    with pytest.raises(SettingError, match="equal channels"):
        check_needs("kdsvd", alone(joint("kdsvd")).needs, shapes(two, wider))
    with pytest.raises(SettingError, match="stages"):
        check_needs("kdsvd", alone(joint("kdsvd")).needs, shapes(net(stages=((3, 4, 4),))))
