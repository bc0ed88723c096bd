"""Tf-KD (self) against loops over rows and classes."""

import math

import pytest
import torch
from recorded import Case, maps, weighted
from steps import batch, joint, phase, speak, weights
from torch import Tensor

from fskd.methods.words import Term
from fskd.resolve import resolve
from fskd.types import Batch, Outputs


def found(student: Tensor, teacher: Tensor, rows: Batch, **settings: float) -> dict[str, Term]:
    """Terms of one step."""
    nets = {"student": Outputs(student), "teacher": Outputs(teacher)}
    return speak(joint("tfkd_self", **settings), nets, rows)


@pytest.mark.parametrize("name", ["tfkd_self_c1", "tfkd_self_c2"])
def test_recorded(name: str) -> None:
    """The whole loss."""
    case = Case(name)
    settings = {"reg_weight": case.hp("alpha"), "temperature": case.hp("temperature")}
    settings["multiplier"] = case.hp("multiplier")
    case.loss(
        weighted(found(case["logits_s"], case["logits_t"], batch(case["labels"]), **settings))
    )


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("temperature", "multiplier"), [(20.0, 1.0), (1.5, 50.0)])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (5, 4)])
def test_slow_twin(rows: int, classes: int, temperature: float, multiplier: float) -> None:
    """Labels and the divergence, averaged over classes too, with their weights."""
    student, teacher = maps(rows, classes), maps(rows, classes, seed=1)
    labels = torch.arange(rows) % classes
    ce, kl = 0.0, 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        ce -= math.log(softmax(s, 1.0)[y]) / rows
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / (rows * classes)
    expected = 0.3 * ce + 0.7 * multiplier * temperature**2 * kl
    settings = {"reg_weight": 0.7, "temperature": temperature, "multiplier": multiplier}
    loss = weighted(found(student, teacher, batch(labels), **settings))
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_gradient() -> None:
    """Checked; none for the teacher; extreme logits stay finite."""
    student, teacher = maps(3, 4).requires_grad_(), maps(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: weighted(found(s, teacher, batch(3))), student)
    weighted(found(student, teacher, batch(3))).backward()
    assert teacher.grad is None
    big = torch.tensor([[1e6, -1e6, 0.0]], requires_grad=True)
    loss = weighted(found(big, -big.detach(), batch(1)))
    loss.backward()
    assert loss.isfinite()
    assert big.grad is not None
    assert big.grad.isfinite().all()


def test_weights() -> None:
    """Labels get 1 - a, the divergence a*m/K, and the total is divided by both."""
    run, logits = joint("tfkd_self"), maps(2, 5)
    assert weights(found(logits, logits, batch(2), multiplier=50.0)) == pytest.approx(
        {"ce": 0.05, "tfkd_self": 9.5}
    )
    assert "tfkd_self" in run.unit
    assert (phase(run).asks, phase(run).generated) == (True, True)


def test_the_teacher_is_an_earlier_copy() -> None:
    """As the run's teacher: the same network, labels alone, the same images if asked for."""
    config = resolve(
        {"method": "tfkd_self", "student": "cnn_tiny", "data": {"shots": 5}},
        {"teacher": {"name": "cnn_tiny", "data": "subset"}},
    )
    earlier = config.teacher_run()
    assert (earlier.student, earlier.method.name) == (config.student, "ce")
    assert earlier.data.shots == 5
    assert earlier.seed != config.seed
