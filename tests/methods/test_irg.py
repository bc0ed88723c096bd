"""IRG against loops over pairs and rows, and its degenerate batches."""

import pytest
import torch
from steps import batch, joint, net, shapes, speak, weights

from fskd.methods.irg import edge_loss, edges, transformation, transformation_loss
from fskd.types import Outputs


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random maps in float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def slow_edges(features: torch.Tensor) -> list[float]:
    """Squared distances of all pairs over the largest."""
    flat = [one.flatten().tolist() for one in features]
    found = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x in flat for y in flat]
    return [one / max(found) for one in found]


def test_slow_edges() -> None:
    """Mean over layers of a plain mean over pairs; shapes differ from net to net."""
    student = maps(5, 3), maps(5, 2, 2, 2, seed=1)
    teacher = maps(5, 4, seed=2), 9 * maps(5, 3, 4, 4, seed=3)
    parts = []
    for s, t in zip(student, teacher, strict=True):
        pairs = list(zip(slow_edges(s), slow_edges(t), strict=True))
        parts.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    assert edge_loss(student, teacher).item() == pytest.approx(sum(parts) / 2, rel=1e-12)


def test_slow_transformation() -> None:
    """The first map is pooled by 2x2, the second's channels are averaged in pairs."""
    first, second = maps(4, 2, 4, 4), maps(4, 4, 2, 2, seed=1)
    found = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        total = 0.0
        for c in range(2):
            for y in range(2):
                for x in range(2):
                    block = [a[c][2 * y + i][2 * x + j] for i in (0, 1) for j in (0, 1)]
                    total += (sum(block) / 4 - (b[2 * c][y][x] + b[2 * c + 1][y][x]) / 2) ** 2
        found.append(total)
    expected = torch.tensor(found).double() / max(found)
    torch.testing.assert_close(transformation(first, second), expected, rtol=1e-6, atol=0)
    goal = maps(4, 3, 2, 2, seed=2), maps(4, 7, 2, 2, seed=3)
    loss = (expected - transformation(*goal)).square().mean()
    torch.testing.assert_close(transformation_loss((first, second), goal), loss)


@pytest.mark.parametrize("second", [(5, 2, 2), (2, 4, 4), (1, 3, 3)])
def test_any_widths(second: tuple[int, ...]) -> None:
    """Wider, equal and narrower second stages; one row's distance is the largest."""
    found = transformation(maps(3, 2, 4, 4), maps(3, *second, seed=1))
    assert found.shape == (3,)
    assert found.max() == 1


def test_gradcheck() -> None:
    """Numeric and closed-form gradients agree, through the largest too; the teacher gets none."""
    student = maps(3, 2, 2, 2).requires_grad_(), maps(3, 4, 1, 1, seed=1).requires_grad_()
    teacher = maps(3, 3, 2, 2, seed=2).requires_grad_(), maps(3, 6, 1, 1, seed=3).requires_grad_()
    fixed = [one.detach() for one in teacher]
    assert torch.autograd.gradcheck(lambda a, b: edge_loss((a, b), fixed), student)
    assert torch.autograd.gradcheck(lambda a, b: transformation_loss((a, b), fixed), student)
    (edge_loss(student, teacher) + transformation_loss(student, teacher)).backward()
    assert all(one.grad is None for one in teacher)


@pytest.mark.parametrize("factor", [0.0, 1e-8, 1e-3, 1e6, 1e12])
def test_extreme_values(factor: float) -> None:
    """Finite in float32; the scale does not matter, and rows that coincide have no edges."""
    student = [maps(3, 2, 2, 2).float(), maps(3, 4, 1, 1, seed=1).float()]
    teacher = [maps(3, 3, 2, 2, seed=2).float(), maps(3, 6, 1, 1, seed=3).float()]
    scaled = [(factor * one).requires_grad_() for one in student]
    for loss_of in (edge_loss, transformation_loss):
        loss = loss_of(scaled, teacher)
        loss.backward()
        assert loss.isfinite()
        if factor >= 1e-3:
            torch.testing.assert_close(loss, loss_of(student, teacher), rtol=1e-4, atol=1e-6)
    assert all(one.grad.isfinite().all() for one in scaled)
    assert edges(torch.ones(3, 4)).abs().sum() == 0


def test_far_from_the_origin() -> None:
    """Distances are exact to some digits beside a large common shift."""
    x = maps(5, 8).float()
    torch.testing.assert_close(edges(x + 1e3), edges(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("real", "generated"), [(1, 0), (0, 1), (1, 1), (3, 0)])
def test_rows(real: int, generated: int) -> None:
    """Generated rows count; a single row has no relations; the last two stages are read."""
    n = real + generated
    stages = ((2, 8, 8), (2, 4, 4), (4, 2, 2))
    student, teacher = (
        Outputs(maps(n, 4, seed=i), maps(n, 3, seed=i), [maps(n, *s, seed=i) for s in stages])
        for i in (0, 1)
    )
    nets = {"student": student, "teacher": teacher}
    found = speak(joint("irg", shapes(net(stages=stages))), nets, batch(real, generated))
    own = {"irg_vertex": 0.1, "irg_edge": 5.0, "irg_transform": 5.0}
    expected = {"ce": 1.0} if real else {}
    assert weights(found) == (expected | own if n > 1 else expected)
    if n > 1:
        pair = student.stages[1:], teacher.stages[1:]
        torch.testing.assert_close(found["irg_transform"].value, transformation_loss(*pair))
        layers = [(one.embedding, *one.stages[1:]) for one in (student, teacher)]
        torch.testing.assert_close(found["irg_edge"].value, edge_loss(*layers))
