"""DKD against sums over classes, and its rising weight."""

import math

import pytest
import torch
from recorded import Case, maps, weighted
from steps import batch, joint, phase, speak, weights
from torch import Tensor

from fskd.methods.dkd import DKD
from fskd.methods.words import Term
from fskd.types import Batch, Outputs, Progress

NAMES = ("dkd_target", "dkd_others")


def found(
    student: Tensor, teacher: Tensor, rows: Batch, fraction: float = 0.5, **settings: float
) -> dict[str, Term]:
    """Terms of one step."""
    nets = {"student": Outputs(student), "teacher": Outputs(teacher)}
    progress = Progress(fraction=fraction)
    return speak(joint("dkd", **settings), nets, rows, progress=progress)


@pytest.mark.parametrize("name", ["dkd_c1", "dkd_c2"])
def test_recorded(name: str) -> None:
    """Both terms and their weighted sum, through the method."""
    case = Case(name)
    settings = {"target_weight": case.hp("alpha"), "non_target_weight": case.hp("beta")}
    settings |= {"temperature": case.hp("T"), "ce_weight": 0.0}
    terms = found(case["logits_s"], case["logits_t"], batch(case["labels"]), **settings)
    for term, part in zip(NAMES, ("tckd", "nckd"), strict=True):
        case.close(terms[term].value, part)
    case.loss(weighted(terms))


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (1, 5), (6, 4)])
def test_slow_twin(rows: int, classes: int, temperature: float) -> None:
    """Probabilities of label and rest, and of the rest renormalised, number by number."""
    student, teacher = maps(rows, classes), maps(rows, classes, seed=1)
    labels = torch.arange(rows) % classes
    target, others = 0.0, 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        target += p[y] * math.log(p[y] / q[y])
        target += (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        for c in range(classes):
            if c != y:
                one, other = p[c] / (1 - p[y]), q[c] / (1 - q[y])
                others += one * math.log(one / other)
    terms = found(student, teacher, batch(labels), temperature=temperature)
    scale = temperature**2 / rows
    expected = [scale * target, scale * others]
    actual = [terms[name].value.item() for name in NAMES]
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_kd_is_a_special_case() -> None:
    """KL = target term + sum over rows of (1-p_y) times the other term: one row shows it."""
    student, teacher = maps(1, 5), maps(1, 5, seed=1)
    terms = found(student, teacher, batch(torch.tensor([2])), temperature=3.0, kd_weight=1.0)
    rest = 1 - (teacher / 3).softmax(1)[0, 2]
    both = terms["dkd_target"].value + rest * terms["dkd_others"].value
    torch.testing.assert_close(both, terms["kd"].value)


def test_gradient() -> None:
    """Checked for both; none for the teacher."""
    student, teacher = maps(3, 4).requires_grad_(), maps(3, 4, seed=1).requires_grad_()
    for name in NAMES:

        def term(s: Tensor, name: str = name) -> Tensor:
            return found(s, teacher, batch(3))[name].value

        assert torch.autograd.gradcheck(term, student)
    weighted(found(student, teacher, batch(3))).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(size: float) -> None:
    """A student that is certain and wrong, or right, or as certain as the teacher."""
    one = torch.tensor([[size, -size, 0.0]])
    for student, teacher in ((one, -one), (-one, one), (one, one)):
        leaf = student.clone().requires_grad_()
        terms = found(leaf, teacher, batch(torch.tensor([0])))
        weighted({name: terms[name] for name in NAMES}).backward()
        assert all(terms[name].value.isfinite() for name in NAMES)
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_weights_rise() -> None:
    """Over the first 20 of 240 epochs, both alike; labels count from the beginning."""
    assert DKD.Settings().warmup == 20 / 240
    rows, nets = batch(2), (maps(2, 4), maps(2, 4, seed=1))

    def at(fraction: float, **settings: float) -> dict[str, float]:
        return weights(found(*nets, rows, fraction, **settings))

    assert at(0.0) == {"ce": 1, "dkd_target": 0, "dkd_others": 0}
    assert at(10 / 240) == pytest.approx({"ce": 1, "dkd_target": 0.5, "dkd_others": 4})
    assert at(20 / 240) == at(0.9) == {"ce": 1, "dkd_target": 1, "dkd_others": 8}
    assert at(0.0, warmup=0.0) == at(0.9)


def test_real_rows_only() -> None:
    """Labels are needed; without any nothing is left, and no rows are generated for it."""
    run = joint("dkd")
    assert (phase(run).asks, phase(run).generated) == (True, False)
    assert run.unit >= set(NAMES)
    student, teacher = maps(5, 4), maps(5, 4, seed=1)
    some, fewer = (
        found(student[:n], teacher[:n], rows) for n, rows in ((5, batch(3, 2)), (3, batch(3)))
    )
    for name in NAMES:
        torch.testing.assert_close(some[name].value, fewer[name].value)
    assert found(student, teacher, batch(0, 5)) == {}
