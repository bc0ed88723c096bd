"""Compositions: passes merged, shared terms once, every part its own rows, phases in order."""

from collections.abc import Iterator

import pytest
import torch
from speaking import joint, speak, values

from fskd.errors import SettingError
from fskd.methods.base import Method, Pass, Step, Term, Terms, methods, student, teacher
from fskd.methods.compose import Joint, join
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

K, B, M = 4, 5, 3
STAGES = ((4, 8, 8), (8, 4, 4))
NET = TapShapes((K,), (8,), STAGES, STAGES, (4, 8, 8))
SHAPES = Shapes(K, 20, NET, NET, torch.arange(20) % K, (1, 8, 8), 3)


class OddTeacher(Method):
    """Reads the teacher with batch statistics, and a map fed to another network."""

    passes = (
        teacher("logits", mode="batch"),
        student("stages"),
        Pass("fed", "teacher", frozenset({"logits"}), on="student.stages.1"),
    )

    def terms(self, step: Step) -> Terms:
        """Which logits it was given."""
        return {"odd": Term(step.teacher.logits.mean()), "fed": Term(step["fed"].logits.mean())}


@pytest.fixture
def odd() -> Iterator[None]:
    methods.names()
    methods.register("odd")(OddTeacher)
    yield
    del methods._parts["odd"]


def outputs(rows: int, seed: int) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    maps = tuple(torch.rand(rows, *shape, generator=rng) for shape in (NET.stem, *STAGES))
    logits = torch.randn(rows, K, generator=rng).requires_grad_(True)
    return Outputs(logits, torch.rand(rows, 8, generator=rng), maps[1:], maps[1:], maps[0])


def batch(run: Joint, phase: str = "main") -> Batch:
    inputs = torch.rand(B + M, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = {"generated": slice(B, B + M)}
    found = Batch(inputs, torch.arange(B) % K, torch.arange(B), parts)
    stretch = next(s for s in run.stretches() if s.name == phase)
    return run.views(found, torch.Generator(), stretch)


def test_terms_and_weights_of_the_first_part_win() -> None:
    run = joint("kdplus+at+rkd", SHAPES)
    ours, theirs = outputs(B + M, 1), outputs(B + M, 2)
    terms = speak(run, batch(run), student=ours, teacher=theirs)
    assert set(terms) == {"ce", "kd", "generated", "at", "rkd_dist", "rkd_angle"}
    found = terms["ce"].weight, terms["at"].weight, terms["generated"].weight
    assert found == (0.1, 1000.0, 1.0)
    alone = speak(joint("rkd", SHAPES), batch(run), student=ours, teacher=theirs)
    torch.testing.assert_close(terms["rkd_angle"].value, alone["rkd_angle"].value)


def test_passes_of_one_network_in_one_mode_are_one() -> None:
    (stretch,) = joint("kdplus+at+rkd", SHAPES).stretches()
    assert [run.net for run in stretch.runs] == ["student", "teacher"]
    assert stretch.runs[0].taps == {"logits", "stages", "embedding"}


@pytest.mark.usefixtures("odd")
def test_another_mode_is_another_pass() -> None:
    """Soft targets come from eval mode, whatever else is asked of the teacher."""
    run = joint("kdplus+odd", SHAPES)
    (stretch,) = run.stretches()
    assert [(r.net, r.mode) for r in stretch.runs] == [
        ("student", "role"), ("teacher", "batch"), ("teacher", "role"), ("teacher", "role"),
    ]  # fmt: skip
    assert stretch.teacher == 3
    assert stretch.runs[2].source is not None
    given = [outputs(B + M, seed) for seed in (1, 2, 4, 3)]
    terms = run(given, batch(run), Progress(), stretch)
    alone = speak(joint("kdplus", SHAPES), batch(run), student=given[0], teacher=given[3])
    for name in ("ce", "kd", "generated"):
        assert torch.equal(terms[name].value, alone[name].value)
    assert torch.equal(terms["odd"].value, given[1].logits.mean())
    assert torch.equal(terms["fed"].value, given[2].logits.mean())


def test_every_part_sees_its_own_views() -> None:
    run = joint("sskd+kdplus", SHAPES)
    rows = batch(run)
    assert len(rows.inputs) == B + M + 3 * B
    ours, theirs = outputs(len(rows.inputs), 1), outputs(len(rows.inputs), 2)
    terms = values(speak(run, rows, student=ours, teacher=theirs))
    alone = joint("sskd", SHAPES)
    said = values(speak(alone, rows, student=ours, teacher=theirs))
    torch.testing.assert_close(terms["ss"], said["ss"])
    base = slice(0, B + M)
    kdplus = joint("kdplus", SHAPES)
    plain = speak(kdplus, batch(kdplus), student=ours.rows(base), teacher=theirs.rows(base))
    torch.testing.assert_close(terms["generated"], plain["generated"].value)


def test_initial_phases_come_first_and_run_alone() -> None:
    run = joint("kdplus+sskd+fsp", SHAPES)
    phases = run.stretches()
    assert [phase.name for phase in phases] == ["sskd.head", "fsp.fsp", "main"]
    assert phases[0].trains == ("method.parts.sskd.teacher_head",)
    assert not phases[0].trained
    # The rotations belong to sskd and do not pass through the student in the phase of fsp.
    rows = batch(run, "fsp.fsp")
    assert len(rows.inputs) == B + M
    assert len(batch(run, "sskd.head").inputs) == B + M + 3 * B
    nets = {"student": outputs(B + M, 1), "teacher": outputs(B + M, 2)}
    assert set(speak(run, rows, Progress("fsp.fsp"), **nets)) == {"fsp"}
    for name in {t for phase in phases for t in phase.trains if t.startswith("method.")}:
        run.get_submodule(name.removeprefix("method."))


def test_labels_reach_every_student_in_any_order() -> None:
    for names in ("kd+dml", "dml+kd"):
        run = joint(names, SHAPES)
        nets = {"student": outputs(B + M, 1), "peer1": outputs(B + M, 2)}
        terms = speak(run, batch(run), **nets, teacher=outputs(B + M, 3))
        for net in nets.values():
            (gradient,) = torch.autograd.grad(terms["ce"].value, net.logits, retain_graph=True)
            assert gradient.abs().sum() > 0


def test_adapters_do_not_depend_on_the_company() -> None:
    alone, together = (joint(names, SHAPES).parts["fitnet"] for names in ("fitnet", "crd+fitnet"))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name])


def test_temperatures_that_disagree_are_refused() -> None:
    parts = [
        ("at", methods.get("at").Settings(kd_weight=0.5, temperature=2.0)),
        ("kdplus", methods.get("kdplus").Settings(kd_weight=0.0)),
    ]
    assert join(parts).stretches()[0].objective is not None
    mixed = [
        ("sskd", methods.get("sskd").Settings(kd_temperature=2.0)),
        ("kdplus", methods.get("kdplus").Settings()),
    ]
    with pytest.raises(SettingError, match=r"method.sskd.temperature: 2 beside 4 of kdplus"):
        join(mixed).stretches()
