"""Smoothed labels: the control without a teacher."""

import math

import pytest
import torch
from recorded import Case, maps, weighted
from steps import batch, joint, phase, speak, weights

from fskd.methods.ls import LS
from fskd.resolve import resolve
from fskd.types import Outputs


def loss(student: torch.Tensor, labels: torch.Tensor, **settings: float) -> torch.Tensor:
    """The weighted sum of one step."""
    return weighted(speak(joint("ls", **settings), {"student": Outputs(student)}, batch(labels)))


def test_recorded() -> None:
    """With the published smoothing, which is the default."""
    case = Case("label_smoothing_c1")
    assert LS.Settings().label_smoothing == case.hp("eps") == 0.1
    case.loss(loss(case["logits_s"], case["labels"]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (5, 4)])
def test_slow_twin(rows: int, classes: int, smoothing: float) -> None:
    """1-e on the label, e spread over the wrong classes."""
    student, labels, total = maps(rows, classes), torch.arange(rows) % classes, 0.0
    for row, y in zip(student.tolist(), labels.tolist(), strict=True):
        norm = sum(math.exp(z) for z in row)
        for c, z in enumerate(row):
            goal = 1 - smoothing if c == y else smoothing / (classes - 1)
            total -= goal * math.log(math.exp(z) / norm) / rows
    actual = loss(student, labels, label_smoothing=smoothing)
    assert actual.item() == pytest.approx(total, rel=1e-12)


def test_gradient_and_extreme_logits() -> None:
    """Checked, and finite."""
    labels = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(lambda s: loss(s, labels), maps(3, 4).requires_grad_())
    big = torch.tensor([[1e6, -1e6, 0.0]], requires_grad=True)
    value = loss(big, torch.tensor([1]))
    value.backward()
    assert value.isfinite()
    assert big.grad is not None
    assert big.grad.isfinite().all()


def test_no_teacher() -> None:
    """Labels of real rows are all that is learned."""
    run = joint("ls")
    assert (phase(run).asks, phase(run).generated) == (False, False)
    assert weights(speak(run, {"student": Outputs(maps(2, 4))}, batch(2))) == {"ce": 1}
    assert resolve({"method": "ls"}).teacher is None
