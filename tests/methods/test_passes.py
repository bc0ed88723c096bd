"""Passes merged: equal ones are one run, another mode is another, maps feed later ones."""

from collections.abc import Mapping

import pytest
import torch
from steps import joint, net, outputs, phase, shapes, speak, values

from fskd.methods.base import Method, Step, methods
from fskd.methods.compose import Joint
from fskd.methods.plan import Stretch
from fskd.methods.words import Mode, Pass, Role, Term, Terms, student, teacher
from fskd.types import Batch, Outputs, Progress

K, B, M = 4, 5, 3
STAGES = ((4, 8, 8), (8, 4, 4))
SHAPES = shapes(net(K, 8, STAGES), n=20, inputs=(1, 8, 8), seed=3)


def nets(rows: int, *more: str) -> dict[str, Outputs]:
    names = "student", "teacher", *more
    return {name: outputs(SHAPES.student, rows, i) for i, name in enumerate(names)}


def batch(method: Joint, name: str = "main") -> Batch:
    inputs = torch.rand(B + M, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Batch(inputs, torch.arange(B) % K, torch.arange(B), {"generated": slice(B, B + M)})
    return method.views(found, torch.Generator(), phase(method, name))


def asked(stretch: Stretch) -> list[tuple[str, Mode, set[str]]]:
    return [(run.net, run.mode, set(run.taps)) for run in stretch.runs]


class Toy(Method):
    """Reads the teacher's pre-activations by batch statistics, as OFD does."""

    passes = student("pre"), teacher("pre", mode="batch")

    def terms(self, step: Step) -> Terms:
        loss = (step.student.pre[-1] - step.teacher.pre[-1]).square().mean()
        return {"toy": Term(loss, 2.0)}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    methods.names()
    monkeypatch.setitem(methods._parts, "toy", Toy)
    return Toy


def test_equal_passes_are_one_run() -> None:
    method = joint("kdplus+at+rkd+fitnet", SHAPES, temperature=4.0)
    taps = {"logits", "stages", "stem", "embedding"}
    assert asked(phase(method)) == [("student", "role", taps), ("teacher", "role", taps)]
    assert method.reads("student") == method.reads("teacher") == taps


def test_another_mode_is_another_run(toy: type[Method]) -> None:
    """The soft targets of ``kdplus+ofd`` come from the teacher in eval mode."""
    for names in ("kdplus+toy", "toy+kdplus"):
        method = joint(names, SHAPES)
        (voice,) = (one for one in phase(method).voices if one.part == "toy")
        runs = phase(method).runs
        assert runs[voice.runs["teacher"]].mode == "batch"
        assert runs[voice.runs["teacher"]].taps == {"pre"}
        known = phase(method).teacher
        assert known is not None
        assert (runs[known].mode, runs[known].taps) == ("role", {"logits"})
        assert len(runs) == 3


def test_each_mode_is_heard_by_its_own_terms(toy: type[Method]) -> None:
    method = joint("kdplus+toy", SHAPES)
    stretch, rows = phase(method), batch(method)
    given = nets(B + M, "batch")
    given["role"] = given.pop("teacher")
    by_run = [given["student" if run.net == "student" else run.mode] for run in stretch.runs]
    terms = values(method(by_run, rows, Progress(), stretch))
    plain = {"student": given["student"], "teacher": given["role"]}
    for name, value in values(speak(joint("kdplus", SHAPES), plain, rows)).items():
        assert torch.equal(terms[name], value)
    goal = (given["student"].pre[-1] - given["batch"].pre[-1]).square().mean()
    assert torch.equal(terms["toy"], goal)


class Fed(Toy):
    """A section of the student on the teacher's maps, as in LIT."""

    passes = (
        teacher("stages"),
        student("logits"),
        Pass("lower", "section", frozenset({"stages"}), on="teacher.stages.0"),
        Pass("head", "top", frozenset({"logits"}), on="lower.stages.1"),
        Pass("whole", "top", frozenset({"logits"}), on="student.embedding"),
    )

    @property
    def roles(self) -> Mapping[str, Role]:
        return {"section": Role(weights="shared", after=0), "top": Role(after=1)}

    @property
    def labelled(self) -> tuple[str, ...]:
        return "student", "head"

    def terms(self, step: Step) -> Terms:
        return {"fed": Term(step["head"].logits.square().mean())}


def test_fed_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is fed by an earlier run, whose tap is read; taps of equal passes are joined."""
    methods.names()
    monkeypatch.setitem(methods._parts, "fed", Fed)
    stretch = phase(joint("at+fed", SHAPES))
    runs = stretch.runs
    (voice,) = (one for one in stretch.voices if one.part == "fed")
    sources = {name: runs[number].source for name, number in voice.runs.items()}
    lower, head, whole = (sources[name] for name in ("lower", "head", "whole"))
    assert sources["teacher"] is sources["student"] is None
    assert lower is not None
    assert head is not None
    assert whole is not None
    assert (runs[lower.run].net, lower.tap, lower.stage) == ("teacher", "stages", 0)
    assert (runs[head.run].net, head.tap, head.stage) == ("section", "stages", 1)
    assert (runs[whole.run].net, whole.tap) == ("student", "embedding")
    assert "embedding" in runs[whole.run].taps
    assert voice.runs["head"] != voice.runs["whole"]
    for number, run in enumerate(runs):
        assert run.source is None or run.source.run < number
    # A pass by name learns the labels; the sections are not run on images.
    assert stretch.labelled == (voice.runs["student"], voice.runs["head"])
    assert all(run.net in ("student", "teacher") for run in runs if run.source is None)


def test_a_gradient_of_the_images_is_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run would count the batch twice in the student's running statistics."""

    class Slope(Toy):
        passes = student("logits", input_grad=True), teacher("logits", input_grad=True)

    methods.names()
    monkeypatch.setitem(methods._parts, "slope", Slope)
    for names in ("slope", "kd+slope", "slope+kd"):
        stretch = phase(joint(names, SHAPES))
        assert [(run.net, run.input_grad) for run in stretch.runs] == [
            ("student", True),
            ("teacher", True),
        ]
        assert stretch.input_grad


def test_a_fed_network_learns_the_labels_by_its_pass() -> None:
    """A labelled name that is a pass is that pass, and not the network on the images."""

    class Branch(Toy):
        labelled = "student", "top"
        passes = student("stages"), Pass("top", "top", frozenset(), on="student.stages.0")

        @property
        def roles(self) -> Mapping[str, Role]:
            return {"top": Role(after=0)}

        def terms(self, step: Step) -> Terms:
            return {}

    with pytest.MonkeyPatch.context() as patch:
        methods.names()
        patch.setitem(methods._parts, "branch", Branch)
        method = joint("branch", SHAPES)
        stretch = phase(method)
        assert asked(stretch) == [
            ("student", "role", {"stages", "logits"}),
            ("top", "role", {"logits"}),
        ]
        given = nets(B, "top")
        rows = batch(method)._replace(parts={})
        rows = rows._replace(inputs=rows.inputs[:B])
        both = speak(method, given, rows)["ce"].value
        apart = [
            torch.nn.functional.cross_entropy(given[name].logits, rows.targets)
            for name in ("student", "top")
        ]
        torch.testing.assert_close(both, sum(apart))
