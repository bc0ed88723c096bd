"""Compositions: passes and shared terms once, every part its own rows, phases in order."""

from collections.abc import Mapping

import pytest
import torch
from steps import joint, net, outputs, phase, shapes, speak, values, weights

from fskd.methods.base import Method, Step, methods
from fskd.methods.compose import Joint, join
from fskd.methods.words import Phase, Player, Role, Term, Terms, student
from fskd.types import Batch, Outputs

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


class Toy(Method):
    """A term on the student's logits, and a role."""

    passes = (student("logits"),)

    @property
    def roles(self) -> Mapping[str, Role]:
        return {"section": Role(weights="shared", after=0)}

    def terms(self, step: Step) -> Terms:
        return {"toy": Term(step.student.logits.square().mean())}


def test_terms_and_weights_of_the_first_part_win() -> None:
    method = joint("kdplus+at+rkd", SHAPES)
    rows, given = batch(method), nets(B + M)
    found = speak(method, given, rows)
    assert weights(found) == {
        "ce": 0.1, "kd": 0.9, "generated": 1.0, "at": 1000.0, "rkd_dist": 25.0, "rkd_angle": 50.0
    }  # fmt: skip
    for name in ("at", "rkd"):
        own = values(speak(joint(name, SHAPES), given, rows))
        for term in own.keys() - {"ce"}:
            assert torch.equal(found[term].value, own[term])


def test_every_part_sees_its_own_rows() -> None:
    method = joint("sskd+kdplus", SHAPES)
    rows = batch(method)
    assert len(rows.inputs) == B + M + 3 * B
    given = nets(B + M + 3 * B)
    found = values(speak(method, given, rows))
    own = joint("sskd", SHAPES)
    torch.testing.assert_close(found["ss"], values(speak(own, given, rows))["ss"])
    base = {name: one.rows(slice(0, B + M)) for name, one in given.items()}
    plain = joint("kdplus", SHAPES)
    rest = values(speak(plain, base, batch(plain)))
    torch.testing.assert_close(found["generated"], rest["generated"])
    torch.testing.assert_close(found["kd"], rest["kd"])


def test_initial_phases_come_first_and_run_alone() -> None:
    method = joint("kdplus+sskd+fsp", SHAPES)
    stretches = method.stretches()
    assert [stretch.name for stretch in stretches] == ["sskd.head", "fsp.fsp", "main"]
    assert stretches[0].trains == ("method.parts.sskd.teacher_head",)
    assert not stretches[0].trained
    # The rotations belong to sskd and do not pass through the student in the phase of fsp.
    assert len(batch(method, "fsp.fsp").inputs) == B + M
    assert len(batch(method, "sskd.head").inputs) == B + M + 3 * B
    assert set(speak(method, nets(B + M), batch(method, "fsp.fsp"), "fsp.fsp")) == {"fsp"}
    for name in {t for one in stretches for t in one.trains if t.startswith("method.")}:
        method.get_submodule(name.removeprefix("method."))


def test_a_phase_is_told_its_own_name() -> None:
    seen = []

    class Says(Toy):
        def terms(self, step: Step) -> Terms:
            seen.append(step.progress.phase)
            return {}

        @property
        def phases(self) -> tuple[Phase, ...]:
            return Phase("first"), Phase()

    with pytest.MonkeyPatch.context() as patch:
        methods.names()
        patch.setitem(methods._parts, "says", Says)
        method = joint("kd+says", SHAPES)
        for stretch in method.stretches():
            speak(method, nets(B + M), batch(method, stretch.name), stretch.name)
    assert seen == ["first", "main"]


def test_shares_are_relative_to_each_methods_main_phase() -> None:
    found = {stretch.name: stretch.share for stretch in joint("fsp+sskd", SHAPES).stretches()}
    assert found == {"fsp.fsp": 0.125, "sskd.head": 0.25, "main": 1.0}


@pytest.mark.parametrize("names", ["kd+dml", "dml+kd"])
def test_labels_reach_every_student_in_any_order(names: str) -> None:
    method = joint(names, SHAPES)
    given = nets(B + M, "peer1")
    found = speak(method, given, batch(method))
    for name in ("student", "peer1"):
        (gradient,) = torch.autograd.grad(found["ce"].value, given[name].logits, retain_graph=True)
        assert gradient.abs().sum() > 0
    # The soft targets are the student's.
    (none,) = torch.autograd.grad(found["kd"].value, given["peer1"].logits, allow_unused=True)
    assert none is None


def test_adapters_do_not_depend_on_the_company() -> None:
    alone, together = joint("fitnet", SHAPES), joint("crd+fitnet", SHAPES)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name])


class Rival(Toy):
    """A term that a player of its own minimises."""

    passes = (student("logits"),)

    @property
    def players(self) -> Mapping[str, Player]:
        return {"rival": Player(("method",), {"name": "adam"})}

    def terms(self, step: Step) -> Terms:
        return {"tell": Term(step.student.logits.mean(), by="rival")}


def test_players_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    methods.names()
    monkeypatch.setitem(methods._parts, "rival", Rival)
    method = joint("kd+rival", SHAPES)
    assert list(method.players) == ["main", "rival"]
    assert method.players["rival"].trains == ("method.parts.rival",)
    found = speak(method, nets(B + M), batch(method))
    assert {name: term.by for name, term in found.items()} == {
        "ce": "main", "kd": "main", "generated": "main", "tell": "rival"
    }  # fmt: skip


def test_equal_names_of_two_methods_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same(Toy):
        roles = {}  # noqa: RUF012 - read only

    class Views(Method):
        def views(self, batch: Batch, rng: torch.Generator) -> Mapping[str, torch.Tensor]:
            return {"rotated": batch.inputs}

    methods.names()
    for name, cls in {"toy": Toy, "same": Same, "turn": Views}.items():
        monkeypatch.setitem(methods._parts, name, cls)
    method = joint("toy+same", SHAPES)
    with pytest.raises(ValueError, match="two methods name a term 'toy'"):
        speak(method, nets(B + M), batch(method))
    with pytest.raises(ValueError, match="two methods name their views 'rotated'"):
        batch(joint("sskd+turn", SHAPES))
    for kind, cls in {"role": Toy, "player": Rival}.items():
        monkeypatch.setitem(methods._parts, "first", cls)
        monkeypatch.setitem(methods._parts, "second", cls)
        parts = [(name, cls.Settings()) for name in ("first", "second")]
        with pytest.raises(ValueError, match=f"two methods name a {kind}"):
            getattr(join(parts), f"{kind}s")
