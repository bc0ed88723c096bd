"""KD against its definition, written with loops."""

import math

import pytest
import torch
from steps import batch, joint, speak, values, weights

from fskd.types import Outputs


def softmax(row: list[float], temperature: float) -> list[float]:
    """Class probabilities of one row."""
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def slow_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """T^2 times the mean over rows of sum_c p log(p/q)."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def slow_ce(student: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean of -log of the label's probability."""
    rows = zip(student.tolist(), targets.tolist(), strict=True)
    return sum(-math.log(softmax(s, 1.0)[y]) for s, y in rows) / len(student)


def terms(n_real: int, n_generated: int, **settings: float) -> tuple[dict, torch.Tensor, ...]:
    """The method's terms on random logits, and those logits."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, n_real + n_generated, 4, generator=rng).double().unbind()
    nets = {"student": Outputs(student), "teacher": Outputs(teacher)}
    found = speak(joint("kd", **settings), nets, batch(n_real, n_generated))
    return values(found), student, teacher


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("n_real", [1, 7])
def test_slow_twin(temperature: float, n_real: int) -> None:
    """Both terms agree with the loops."""
    losses, student, teacher = terms(n_real, 0, temperature=temperature)
    assert losses["kd"].item() == pytest.approx(slow_kd(student, teacher, temperature), rel=1e-12)
    expected = slow_ce(student, torch.arange(n_real) % 4)
    assert losses["ce"].item() == pytest.approx(expected, rel=1e-12)


def test_generated_rows_have_a_term_of_the_same_weight() -> None:
    """0.1*CE(x) + 0.9*KD(x) + 0.9*KD(x~)."""
    losses, student, teacher = terms(5, 3)
    for name, rows in (("kd", slice(0, 5)), ("generated", slice(5, 8))):
        expected = slow_kd(student[rows], teacher[rows], 4.0)
        assert losses[name].item() == pytest.approx(expected, rel=1e-12)
    assert losses.keys() == {"ce", "kd", "generated"}
    assert terms(0, 3)[0].keys() == {"generated"}


def test_equal_networks() -> None:
    """The divergence is 0 where student and teacher agree."""
    same = Outputs(torch.randn(3, 4))
    losses = speak(joint("kd"), {"student": same, "teacher": same}, batch(3))
    assert losses["kd"].value.item() == pytest.approx(0.0, abs=1e-6)


def test_weights() -> None:
    """Published defaults."""
    same = Outputs(torch.zeros(5, 4))
    found = speak(joint("kd"), {"student": same, "teacher": same}, batch(3, 2))
    assert weights(found) == {"ce": 0.1, "kd": 0.9, "generated": 0.9}
