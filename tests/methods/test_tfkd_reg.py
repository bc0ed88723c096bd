"""Tf-KD (regularisation) against loops over rows and classes."""

import math

import pytest
import torch
from steps import batch, joint, phase, speak, weights

from fskd.methods.tfkd_reg import virtual_teacher_kl
from fskd.types import Outputs


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
    """Labels get 1 - a, the virtual teacher a times the multiplier; real rows only."""
    method = joint("tfkd_reg", multiplier=50.0)
    assert (phase(method).asks, phase(method).generated) == (False, False)
    student = logits(5, 5)
    found = speak(method, {"student": Outputs(student)}, batch(3, 2))
    assert weights(found) == pytest.approx({"ce": 0.05, "tfkd_reg": 47.5})
    expected = virtual_teacher_kl(student[:3], torch.arange(3))
    torch.testing.assert_close(found["tfkd_reg"].value, expected)
    assert speak(method, {"student": Outputs(student[:2])}, batch(0, 2)) == {}
