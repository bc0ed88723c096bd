"""Tf-KD (regularisation) against loops over rows and classes."""

import math

import pytest
import torch
from speaking import generated, joint, speak, weights

from fskd.methods.tfkd_reg import virtual_teacher_kl
from fskd.types import Batch, Outputs, Shapes, TapShapes


def logits(rows: int, classes: int) -> torch.Tensor:
    """Random logits in float64."""
    rng = torch.Generator().manual_seed(rows)
    return torch.randn(rows, classes, generator=rng, dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    """Probabilities of one row."""
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def slow_kl(student: torch.Tensor, targets: list[int], temperature: float, correct: float) -> float:
    """Mean over rows and classes of p (log p - log q), p = softmax(u/T)."""
    total, classes = 0.0, student.shape[1]
    for row, label in zip(student.tolist(), targets, strict=True):
        u = [correct if c == label else (1 - correct) / (classes - 1) for c in range(classes)]
        p, q = softmax([x / temperature for x in u]), softmax(row)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / student.numel()


@pytest.mark.parametrize(("temperature", "correct"), [(40.0, 0.99), (1.0, 0.6)])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 5)])
def test_slow_twin(temperature: float, correct: float, rows: int, classes: int) -> None:
    """The term agrees with the loops; gradients checked."""
    student, targets = logits(rows, classes).requires_grad_(True), torch.arange(rows) % classes
    expected = slow_kl(student, targets.tolist(), temperature, correct)
    actual = virtual_teacher_kl(student, targets, temperature, correct)
    assert actual.item() == pytest.approx(expected, rel=1e-10)
    assert torch.autograd.gradcheck(
        lambda s: virtual_teacher_kl(s, targets, temperature, correct), student
    )


def test_hot_teacher_is_uniform() -> None:
    """At a high temperature labels do not matter, and uniform students have loss 0."""
    student, first, second = logits(3, 4), torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    torch.testing.assert_close(
        virtual_teacher_kl(student, first, 1e9), virtual_teacher_kl(student, second, 1e9)
    )
    assert virtual_teacher_kl(torch.ones(3, 4).double(), first, 1e9).abs() < 1e-12


def test_weights() -> None:
    """Labels get 1 - a, the virtual teacher a times the multiplier."""
    net = TapShapes((5,), (3,), (), ())
    run = joint("tfkd_reg", Shapes(5, 8, net, None, torch.arange(8) % 5), multiplier=50.0)
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.arange(2), torch.arange(2))
    found = speak(run, batch, student=Outputs(logits(2, 5)))
    assert weights(found) == pytest.approx({"ce": 0.05, "tfkd_reg": 47.5})
    empty = torch.zeros(0, dtype=torch.long)
    batch = Batch(torch.zeros(2, 1, 2, 2), empty, empty, generated(0, 2))
    assert speak(run, batch, student=Outputs(logits(2, 5))) == {}
