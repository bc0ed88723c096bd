"""PKT against loops over pairs, and its degenerate batches."""

import math

import pytest
import torch
from steps import batch, joint, net, shapes, speak, weights

from fskd.methods.pkt import neighbours, transfer_loss
from fskd.types import Outputs


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Random embeddings in float64."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(e: list[list[float]], diagonal: bool) -> list[list[float]]:
    """Distribution of each row's neighbours, without any epsilon."""
    found = []
    for i, a in enumerate(e):
        row = []
        for j, b in enumerate(e):
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            kernel = (dot / (math.hypot(*a) * math.hypot(*b)) + 1) / 2
            row.append(kernel if diagonal or i != j else 0.0)
        found.append([k / sum(row) for k in row])
    return found


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("n", [3, 6])
def test_slow_twin(n: int, diagonal: bool) -> None:
    """Mean over all pairs of p_t log(p_t / p_s); widths differ."""
    student, teacher = rows(n, 3), 5 * rows(n, 4, seed=1)
    total = 0.0
    for t, s in zip(*(slow(x.tolist(), diagonal) for x in (teacher, student)), strict=True):
        total += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True) if a > 0)
    found = transfer_loss(student, teacher, diagonal)
    assert found.item() == pytest.approx(total / n**2, rel=1e-4)
    torch.testing.assert_close(neighbours(student, diagonal).sum(1), torch.ones(n).double())


def test_gradcheck() -> None:
    """Numeric and closed-form gradients agree; the teacher gets none."""
    student, teacher = rows(4, 3).requires_grad_(), rows(4, 2, seed=1).requires_grad_()
    for diagonal in (True, False):
        assert torch.autograd.gradcheck(
            lambda s, d=diagonal: transfer_loss(s, teacher.detach(), d), student
        )
    transfer_loss(student, teacher).backward()
    assert teacher.grad is None
    assert transfer_loss(3 * student, student).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e4, 1e25])
def test_extreme_values(factor: float, diagonal: bool) -> None:
    """Finite in float32, opposite rows and rows of zeros included."""
    student = (factor * rows(4, 3)).float()
    student[1] = -student[0]
    student.requires_grad_()
    loss = transfer_loss(student, rows(4, 2, seed=1).float(), diagonal)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    transfer_loss(pair, pair.detach().flip(1), diagonal).backward()
    assert pair.grad.isfinite().all()


@pytest.mark.parametrize(("real", "generated"), [(1, 0), (0, 1), (1, 1), (3, 0)])
def test_rows(real: int, generated: int) -> None:
    """Generated rows count; a single row has no neighbours."""
    n = real + generated
    nets = {
        "student": Outputs(torch.zeros(n, 4), rows(n, 3)),
        "teacher": Outputs(None, rows(n, 5, 1)),
    }
    of = joint("pkt", shapes(net(4, 3), net(4, 5)), diagonal=False)
    found = speak(of, nets, batch(real, generated))
    expected = {"ce": 1.0} if real else {}
    assert weights(found) == (expected | {"pkt": 30000.0} if n > 1 else expected)
    if n > 1:
        pair = nets["student"].embedding, nets["teacher"].embedding
        torch.testing.assert_close(found["pkt"].value, transfer_loss(*pair, diagonal=False))
