"""Logit regression against loops, and what it reads."""

import pytest
import torch
from recorded import Case, maps, weighted
from steps import alone, batch, joint, phase, speak, weights
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.words import Term
from fskd.resolve import resolve
from fskd.types import Outputs


def found(
    student: Tensor, teacher: Tensor, real: int, made: int = 0, **settings: float
) -> dict[str, Term]:
    """Terms of one step."""
    nets = {"student": Outputs(student), "teacher": Outputs(teacher)}
    return speak(joint("logits_mse", **settings), nets, batch(real, made))


def test_recorded() -> None:
    """Through the method, whose labels have no weight."""
    case = Case("logits_mse_c1")
    terms = found(case["logits_s"], case["logits_t"], len(case["logits_s"]))
    assert weights(terms) == {"ce": 0, "logits": 1}
    case.loss(weighted(terms))


@pytest.mark.parametrize(("real", "made"), [(1, 0), (3, 2), (0, 2)])
def test_slow_twin(real: int, made: int) -> None:
    """The sum of squares over all rows, generated ones included, and classes."""
    student, teacher = maps(real + made, 4), maps(real + made, 4, seed=1)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (s - t) ** 2
    terms = found(student, teacher, real, made, weight=2.5)
    assert terms["logits"].value.item() == pytest.approx(total / student.numel(), rel=1e-12)
    assert terms["logits"].weight == 2.5


def test_gradient() -> None:
    """Checked; none for the teacher."""
    student, teacher = maps(3, 4).requires_grad_(), maps(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: found(s, teacher, 3)["logits"].value, student)
    found(student, teacher, 3)["logits"].value.backward()
    assert teacher.grad is None


def test_large_and_rounded_logits() -> None:
    """Computed with in float32."""
    student = torch.full((1, 4), 3e4, dtype=torch.float16)
    value = found(student, -student, 1)["logits"].value
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(6e4**2, rel=1e-3)


def test_reads() -> None:
    """The teacher's exact logits, for generated and unlabelled rows too; labels if they count."""
    run = joint("logits_mse")
    assert (phase(run).asks, phase(run).generated, phase(run).unlabelled) == (True,) * 3
    assert alone(run).needs.exact_logits
    assert weights(found(maps(2, 4), maps(2, 4), 2, ce_weight=0.5)) == {"ce": 0.5, "logits": 1}
    with pytest.raises(SettingError, match=r"method\.weight"):
        resolve({"method": {"name": "logits_mse", "weight": -1}})
