"""LIT: recorded values, sections pixel by pixel, and what the sections are fed with."""

from typing import Any

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, step, taps, weighted
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.compose import join
from fskd.methods.lit import LIT, section_loss
from fskd.methods.needs import check_needs
from fskd.methods.plan import Source
from fskd.methods.words import Role, Term
from fskd.types import Outputs


def built(stages: list[Tensor], stem: tuple[int, ...] = (4, 8, 8), **settings: float) -> LIT:
    """The method for two networks that give these maps."""
    method = LIT(LIT.Settings(**settings))
    method.shapes = shapes(taps(stages, stem), taps(stages, stem))
    method.build(method.shapes)
    return method


def outputs(sections: list[Tensor], teacher: list[Tensor]) -> dict[str, Outputs]:
    """What the sections and the teacher gave."""
    found = {f"section{i}": Outputs(stages=(one,)) for i, one in enumerate(sections)}
    return {**found, "teacher": Outputs(stages=tuple(teacher))}


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the entropy of softened probabilities: soft cross-entropy less the divergence."""
    log_p = (logits / temperature).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() * temperature**2


def test_recorded() -> None:
    """The objective's terms, the sections and the teacher's entropy make the published loss."""
    case = Case("lit_c1")
    sections, teacher = case.stages("section_out_s"), case.stages("feat_t")
    alpha, beta, temperature = (float(case.hp(name)) for name in ("alpha", "beta", "temp"))
    assert LIT.Settings() == LIT.Settings(alpha=alpha, beta=beta, temperature=temperature)
    method = built(teacher)
    batch = real_batch(case["labels"])
    objective = method.settings.objective()
    shared = objective.terms(batch, [case["logits_s"]], case["logits_t"])
    made = {name: Term(shared[name], objective.weights[name]) for name in ("ce", "kd")}
    soft = objective.kd_weight * entropy(case["logits_t"], temperature)
    labels = weighted(made) + soft
    case.close(labels * 2 / beta, "kd")
    own = method.terms(step(batch, **outputs(sections, teacher)))
    case.loss(labels + weighted(own))


def test_slow_twin() -> None:
    """Sum over stages of the mean over everything else, number by number."""
    sections = [maps(2, 3, 5, 2), maps(2, 1, 1, 1, seed=1), maps(2, 4, 3, 3, seed=2)]
    teacher = [maps(*one.shape, seed=5) for one in sections]
    total = 0.0
    for s, t in zip(sections, teacher, strict=True):
        pairs = list(zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
        total += sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    assert section_loss(sections, teacher).item() == pytest.approx(total, rel=1e-12)


def test_limits() -> None:
    """0 for equal maps; one row; no gradient for the teacher; large maps stay finite."""
    teacher = maps(1, 2, 3, 3).requires_grad_(True)
    section = teacher.detach().clone().requires_grad_(True)
    assert section_loss([section], [teacher]) == 0
    section_loss([section + 1], [teacher]).backward()
    assert teacher.grad is None
    torch.testing.assert_close(section.grad, torch.full_like(section, 2 / 18))
    large = torch.full((1, 2, 2, 2), 1e15)
    assert section_loss([large], [-large]).item() == pytest.approx(4e30, rel=1e-6)


def test_bf16() -> None:
    """Rounded maps are computed with in float32."""
    section, teacher = maps(3, 2, 4, 4), maps(3, 2, 4, 4, seed=1)
    rounded = section_loss([section.bfloat16()], [teacher.bfloat16()])
    assert rounded.dtype == torch.float32
    exact = section_loss([section.float()], [teacher.float()])
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_sections(depth: int) -> None:
    """One a stage, behind the stem or the stage before, fed with the teacher's map there."""
    stages = [maps(1, 3, 4, 4)] * depth
    assert LIT(LIT.Settings()).roles == {}
    method = built(stages)
    method.build(method.shapes)  # nothing is added twice
    assert [role.upto for role in method.roles.values()] == list(range(depth))
    assert [role.after for role in method.roles.values()] == ["stem", *range(depth - 1)]
    assert {role._replace(after=None, upto=None) for role in method.roles.values()} == {
        Role(weights="shared")
    }
    fed = [one.on for one in method.passes[2:]]
    assert fed == ["teacher.stem", *(f"teacher.stages.{i}" for i in range(depth - 1))]
    assert [one.net for one in method.passes[2:]] == list(method.roles)
    assert LIT.roles == {}
    assert len(LIT.passes) == 2


def test_in_a_composition() -> None:
    """The runs of a phase: the networks on the batch, the sections on the teacher's maps."""
    joint = join([("lit", LIT.Settings())])
    assert joint.reads("teacher") == {"logits", "stem", "stages"}
    stages = [maps(2, 4, 8, 8), maps(2, 6, 4, 4)]
    joint.build(shapes(taps(stages, (4, 8, 8)), taps(stages, (4, 8, 8))))
    assert joint.roles.keys() == {"section0", "section1"}
    (stretch,) = joint.stretches()
    assert [run.net for run in stretch.runs] == ["student", "teacher", "section0", "section1"]
    assert [run.source for run in stretch.runs[2:]] == [
        Source(1, "stem", 0),
        Source(1, "stages", 0),
    ]
    batch = real_batch(torch.tensor([0, 1]))
    logits = maps(2, 10, seed=1), maps(2, 10, seed=2)
    given = [Outputs(logits[0]), Outputs(logits[1], stages=tuple(stages))]
    made = [stage + 1 for stage in stages]
    given += [Outputs(stages=(one,)) for one in made]
    terms = joint(given, batch, step(batch).progress, stretch)
    weights = {name: term.weight for name, term in terms.items()}
    expected = {"ce": 0.75 * 0.95 / 2, "kd": 0.75 * 0.05 / 2, "lit": 0.25 / 2}
    assert weights == pytest.approx(expected)
    torch.testing.assert_close(terms["lit"].value, torch.tensor(2.0, dtype=torch.float64))
    assert "lit" not in joint.unit


@pytest.mark.parametrize("changed", [{"stem": (3, 8, 8)}, {"stages": [maps(1, 4, 2, 2)]}])
def test_unlike_maps_are_refused(changed: dict[str, Any]) -> None:
    """Stems and sizes must agree, since one network continues the other."""
    usual: dict[str, Any] = {"stages": [maps(1, 4, 4, 4)], "stem": (4, 8, 8)}
    method = LIT(LIT.Settings())
    with pytest.raises(SettingError, match="equal stem and stages"):
        method.build(shapes(taps(**usual), taps(**{**usual, **changed})))


def test_unlike_widths_are_refused() -> None:
    """The error names the channels."""
    found = shapes(taps([maps(1, 4, 4, 4)]), taps([maps(1, 6, 4, 4)]))
    with pytest.raises(SettingError, match="equal channels"):
        check_needs("lit", LIT.needs, found)
