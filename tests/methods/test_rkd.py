"""RKD against loops over pairs and triples, and its degenerate batches."""

import math

import pytest
import torch
from steps import batch, joint, speak, weights

from fskd.losses.relations import angles, relative_distances
from fskd.methods.rkd import angle_loss, distance_loss
from fskd.types import Outputs

Row = list[float]


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Random embeddings in float64."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(x: float) -> float:
    """Huber loss with delta 1."""
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def unit(a: Row, b: Row) -> Row:
    """Direction from a to b, zero for equal points."""
    norm = math.dist(a, b)
    return [(y - x) / norm if norm else 0.0 for x, y in zip(a, b, strict=True)]


def slow_distances(e: list[Row]) -> list[float]:
    """All ordered pairs, divided by the mean of the positive ones."""
    all_pairs = [math.dist(a, b) for a in e for b in e]
    positive = [d for d in all_pairs if d > 0]
    return [d / (sum(positive) / len(positive)) for d in all_pairs]


def slow_angles(e: list[Row]) -> list[float]:
    """Cosine at each row between the directions to each pair of rows."""
    return [
        sum(x * y for x, y in zip(unit(a, b), unit(a, c), strict=True))
        for a in e
        for b in e
        for c in e
    ]


@pytest.mark.parametrize(("n", "dim_s", "dim_t"), [(3, 2, 5), (7, 4, 3)])
def test_slow_twin(n: int, dim_s: int, dim_t: int) -> None:
    """Both terms are plain means over all pairs and triples."""
    student, teacher = rows(n, dim_s), 5 * rows(n, dim_t, seed=1)
    for fast, slow in ((distance_loss, slow_distances), (angle_loss, slow_angles)):
        pairs = list(zip(slow(student.tolist()), slow(teacher.tolist()), strict=True))
        expected = sum(huber(a - b) for a, b in pairs) / len(pairs)
        assert fast(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_invariances() -> None:
    """Scaling, shifting and rotating the student changes nothing; equal relations give 0."""
    x = rows(5, 3)
    q, _ = torch.linalg.qr(rows(3, 3, seed=2))
    moved = 4 * x @ q + 1
    assert distance_loss(moved, x).item() == pytest.approx(0, abs=1e-20)
    assert angle_loss(moved, x).item() == pytest.approx(0, abs=1e-20)


def test_coinciding_rows() -> None:
    """Equal rows have distance 0, no direction, and a gradient of ordinary size."""
    x = rows(4, 3).float()
    x[1] = x[0]
    x.requires_grad_(True)
    assert relative_distances(x)[0, 1] == 0
    assert angles(x)[0, 1].abs().sum() == 0
    teacher = rows(4, 2, seed=1).float()
    (distance_loss(x, teacher) + angle_loss(x, teacher)).backward()
    assert x.grad.abs().max() < 10
    same = torch.ones(4, 3, requires_grad=True)
    (distance_loss(same, teacher) + angle_loss(same, teacher)).backward()
    assert same.grad.isfinite().all()


def test_gradcheck() -> None:
    """Closed-form and numeric gradients agree."""
    teacher, student = rows(4, 2, seed=3), rows(4, 3, seed=4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: distance_loss(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: angle_loss(s, teacher), student)


def test_full_precision_under_autocast() -> None:
    """Cosines are not rounded to bfloat16."""
    x = rows(5, 8).float()
    expected = angles(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(angles(x), expected)


@pytest.mark.parametrize(("n_real", "n_generated"), [(1, 0), (2, 0), (2, 1), (0, 3), (3, 0)])
def test_small_batches(n_real: int, n_generated: int) -> None:
    """Fewer than three rows have no angles: both terms are left out. Generated rows count."""
    n = n_real + n_generated
    student, teacher = (Outputs(torch.zeros(n, 4), rows(n, 3, seed)) for seed in (0, 1))
    expected = {"ce": 1.0} if n_real else {}
    if n >= 3:
        expected |= {"rkd_dist": 25.0, "rkd_angle": 50.0}
    nets = {"student": student, "teacher": teacher}
    found = speak(joint("rkd"), nets, batch(n_real, n_generated))
    assert weights(found) == expected
    if n >= 3:
        pair = student.embedding, teacher.embedding
        torch.testing.assert_close(found["rkd_dist"].value, distance_loss(*pair))
        torch.testing.assert_close(found["rkd_angle"].value, angle_loss(*pair))
