"""CC against loops over pairs, both forms, and its degenerate batches."""

import math

import pytest
import torch
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.methods.cc import CC, correlation_loss, difference_loss, taylor_kernel
from fskd.types import Outputs


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Random embeddings in float64."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_kernel(e: list[list[float]], gamma: float, order: int) -> list[float]:
    """The series for every pair of unit vectors."""
    units = [[x / math.hypot(*row) for x in row] for row in e]
    found = []
    for a in units:
        for b in units:
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            terms = [(2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1)]
            found.append(math.exp(-2 * gamma) * sum(terms))
    return found


@pytest.mark.parametrize(("n", "gamma", "order"), [(2, 0.4, 1), (5, 0.4, 2), (4, 1.5, 5)])
def test_slow_twin(n: int, gamma: float, order: int) -> None:
    """A plain mean over all pairs; widths differ."""
    student, teacher = rows(n, 3), 6 * rows(n, 5, seed=1)
    kernels = [slow_kernel(one.tolist(), gamma, order) for one in (student, teacher)]
    expected = sum((a - b) ** 2 for a, b in zip(*kernels, strict=True)) / n**2
    found = correlation_loss(student, teacher, gamma, order)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_series_approaches_the_gaussian() -> None:
    """With many powers the kernel is exp(-gamma * squared distance of unit vectors)."""
    x = rows(5, 4)
    units = torch.nn.functional.normalize(x)
    exact = torch.exp(-0.7 * torch.cdist(units, units).square())
    torch.testing.assert_close(taylor_kernel(x, 0.7, 25), exact)


def test_differences_slow_twin() -> None:
    """Neighbouring rows, coordinate by coordinate."""
    student, teacher = rows(4, 3).tolist(), rows(4, 3, seed=1).tolist()
    apart = [
        [abs(a - b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(student, teacher, strict=True)
    ]
    expected = sum(a * b for i in range(3) for a, b in zip(apart[i], apart[i + 1], strict=True)) / 3
    found = difference_loss(rows(4, 3), rows(4, 3, seed=1))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck() -> None:
    """Numeric and closed-form gradients agree; the kernel gives the teacher none."""
    student, teacher = rows(4, 3).requires_grad_(), rows(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: correlation_loss(s, teacher.detach()), student)
    correlation_loss(student, teacher).backward()
    assert teacher.grad is None
    both = student, rows(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(difference_loss, both)


@pytest.mark.parametrize("factor", [0.0, 1e-8, 1e-3, 1e4, 1e25])
def test_extreme_values(factor: float) -> None:
    """Finite in float32; lengths do not matter, no length is no direction."""
    student, teacher = rows(4, 3).float(), rows(4, 2, seed=1).float()
    scaled = (factor * student).requires_grad_()
    loss = correlation_loss(scaled, teacher)
    loss.backward()
    assert loss.isfinite()
    assert scaled.grad.isfinite().all()
    if factor >= 1e-3:
        torch.testing.assert_close(loss, correlation_loss(student, teacher))
    else:
        assert (scaled.grad == 0).all()


@pytest.mark.parametrize(("form", "weight"), [("kernel", 100.0), ("differences", 0.02)])
@pytest.mark.parametrize(("real", "generated"), [(1, 0), (0, 1), (1, 1), (3, 0)])
def test_rows(form: str, weight: float, real: int, generated: int) -> None:
    """Each form has its weight; generated rows count; a single row has no relations."""
    n = real + generated
    method = joint("cc", shapes(net(4, 3), net(4, 5)), form=form, feat_dim=2)
    student = Outputs(torch.zeros(n, 4), rows(n, 3).float())
    nets = {"student": student, "teacher": Outputs(None, rows(n, 5, 1).float())}
    found = speak(method, nets, batch(real, generated))
    expected = {"ce": 1.0} if real else {}
    assert weights(found) == (expected | {"cc": weight} if n > 1 else expected)


def test_both_maps_are_trained() -> None:
    """As in the benchmark's code; no weight is taken for another."""
    method = alone(joint("cc", shapes(net(4, 3), net(4, 5)), form="differences", weight=0.0))
    assert isinstance(method, CC)
    assert method.embed_student.weight.shape == (128, 3)
    assert method.embed_teacher.weight.shape == (128, 5)
    assert all(p.requires_grad for p in method.parameters())
    assert not list(alone(joint("cc")).parameters())
    nets = {"student": Outputs(torch.zeros(3, 4), rows(3, 3).float())}
    nets["teacher"] = Outputs(None, rows(3, 5).float())
    of = joint("cc", shapes(net(4, 3), net(4, 5)), weight=0.0)
    assert weights(speak(of, nets, batch(3)))["cc"] == 0.0
