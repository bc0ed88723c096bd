"""PE is a preset: KD+ whose steps take turns, on patch-wise mixes that are searched for."""

import math

import pytest
import torch
from steps import batch, joint, speak
from torch import Tensor

from fskd.generators.blind_mixpatch import BlindMixPatch, BlindMixPatchSettings
from fskd.methods.base import Method
from fskd.methods.pe import PE
from fskd.resolve import resolve
from fskd.train.step import total_loss
from fskd.types import Outputs


def slow_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 KL(p_T(t) || p_T(s)), mean over rows, by loops."""
    found = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        ours, theirs = ([math.exp(x / temperature) for x in row] for row in (s, t))
        p, q = ([x / sum(row) for x in row] for row in (theirs, ours))
        found += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * found / len(student)


def slow_ce(student: Tensor, labels: Tensor) -> float:
    """Cross-entropy, mean over rows, by loops."""
    rows = zip(student.tolist(), labels.tolist(), strict=True)
    return sum(math.log(sum(map(math.exp, s))) - s[y] for s, y in rows) / len(labels)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_slow_twin(rows: int, scale: float) -> None:
    """Published steps: 0.1 CE + 0.9 KD_4 on real rows, or KD_4 on mixes; never both."""
    rng = torch.Generator().manual_seed(rows)
    student, teacher = (
        scale * torch.randn(rows, 4, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    run, nets = joint("pe"), {"student": Outputs(student), "teacher": Outputs(teacher)}
    real, mixed = batch(rows), batch(0, rows)
    terms = speak(run, nets, real)
    assert {name: term.weight for name, term in terms.items()} == {"ce": 0.1, "kd": 0.9}
    expected = 0.1 * slow_ce(student, real.targets) + 0.9 * slow_kd(student, teacher, 4.0)
    assert total_loss(terms, run.unit).item() == pytest.approx(expected, rel=1e-9)
    terms = speak(run, nets, mixed)
    assert {name: term.weight for name, term in terms.items()} == {"generated": 1.0}
    expected = slow_kd(student, teacher, 4.0)
    assert total_loss(terms, run.unit).item() == pytest.approx(expected, rel=1e-9)


def test_preset() -> None:
    """What a run is made of unless it says otherwise."""
    config = resolve({"method": "pe", "budget": {"steps": 30}})
    assert config.generator is not None
    ((name, mixing),) = config.generator.parts
    assert name == "blind_mixpatch"
    assert isinstance(mixing, BlindMixPatchSettings)
    assert (mixing.when, mixing.real_probability, mixing.scale_epochs) == ("alternate", 0.3, True)
    assert (mixing.alpha, mixing.side) == (1.0, "half")
    assert (mixing.lam_per, mixing.pairs) == ("batch", "all")
    assert (mixing.alphas, mixing.sides) == ((0.1, 0.5, 1.0), ("whole", "half"))
    assert (mixing.every, mixing.search_temperature) == (50, 4.0)
    assert config.optim.weight_decay == 1e-4
    scale = BlindMixPatch(mixing).schedule.step_scale
    assert config.budget.to_steps(60, 64, scale) == 100
    assert PE.terms is Method.terms


def test_settings_win_over_the_preset() -> None:
    """Any part may be changed."""
    config = resolve(
        {"method": "pe", "generator": {"real_probability": 0.1, "every": 7}},
        {"optim": {"weight_decay": 5e-4}},
    )
    assert config.generator is not None
    found = config.generator.model_dump()
    assert (found["when"], found["real_probability"], found["every"]) == ("alternate", 0.1, 7)
    assert config.optim.weight_decay == 5e-4
    assert resolve({"method": "pe", "generator": "none"}).generator is None


def test_the_teacher_is_that_of_kdplus() -> None:
    ours, theirs = (resolve({"method": name}).teacher_run().key() for name in ("pe", "kdplus"))
    assert ours == theirs
