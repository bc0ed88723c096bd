"""SP against loops over pairs, and its degenerate batches."""

import math

import pytest
import torch
from steps import batch, joint, net, shapes, speak, weights

from fskd.methods.sp import similarities, similarity_loss
from fskd.types import Outputs


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random maps in float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def slow(features: torch.Tensor) -> list[float]:
    """Products of all pairs, each row divided by its length."""
    flat = [one.flatten().tolist() for one in features]
    products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in flat] for x in flat]
    return [p / math.hypot(*row) for row in products for p in row]


@pytest.mark.parametrize("n", [2, 5])
def test_slow_twin(n: int) -> None:
    """Squared differences of both matrices over n^2; channels and sizes differ."""
    student, teacher = maps(n, 3, 2, 2), 7 * maps(n, 5, 4, 4, seed=1)
    pairs = zip(slow(student), slow(teacher), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / n**2
    assert similarity_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck() -> None:
    """Numeric and closed-form gradients agree; the teacher gets none."""
    student, teacher = maps(4, 2, 2, 2).requires_grad_(), maps(4, 3, 1, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: similarity_loss(s, teacher.detach()), student)
    similarity_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e8, 1e15])
def test_extreme_values(factor: float) -> None:
    """A common factor changes nothing, in float32."""
    student, teacher = maps(4, 2, 3, 3).float(), maps(4, 3, 3, 3, seed=1).float()
    scaled = (factor * student).requires_grad_()
    loss = similarity_loss(scaled, teacher)
    torch.testing.assert_close(loss, similarity_loss(student, teacher), rtol=1e-4, atol=1e-7)
    loss.backward()
    assert scaled.grad.isfinite().all()


def test_silent_rows() -> None:
    """Maps of nothing but zeros are like no others, and get no enormous gradient."""
    student, teacher = maps(3, 2, 2, 2).float(), maps(3, 2, 2, 2, seed=1).float()
    student[1] = 0
    student.requires_grad_()
    assert (similarities(student)[1] == 0).all()
    similarity_loss(student, teacher).backward()
    assert student.grad.abs().max() < 10
    assert similarities(torch.zeros(3, 2)).abs().sum() == 0


@pytest.mark.parametrize(("real", "generated"), [(1, 0), (0, 1), (1, 1), (4, 0)])
def test_rows(real: int, generated: int) -> None:
    """Generated rows count; a single row has no relations; the last stage is read."""
    n = real + generated
    stages = ((2, 4, 4), (3, 2, 2))
    nets = {
        name: Outputs(torch.zeros(n, 4), stages=tuple(maps(n, *s, seed=seed) for s in stages))
        for name, seed in (("student", 0), ("teacher", 1))
    }
    found = speak(joint("sp", shapes(net(stages=stages))), nets, batch(real, generated))
    expected = {"ce": 1.0} if real else {}
    assert weights(found) == (expected | {"sp": 3000.0} if n > 1 else expected)
    if n > 1:
        last = [nets[name].stages[-1] for name in ("student", "teacher")]
        torch.testing.assert_close(found["sp"].value, similarity_loss(*last))
