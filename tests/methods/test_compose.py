"""Compositions: shared terms once, every part its own rows, phases in order."""

import torch

from fskd.methods.base import Method, methods
from fskd.methods.compose import Composite, build, phases_of
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

K, B, M = 4, 5, 3
STAGES = ((4, 8, 8), (4, 8, 8), (8, 4, 4))
NET = TapShapes((K,), (8,), STAGES, STAGES)
TARGETS = torch.arange(20) % K


def make(names: str, n_students: int = 1) -> Method:
    parts = [(name, methods.get(name).Settings()) for name in names.split("+")]
    return build(parts, Shapes(K, 20, (NET,) * n_students, NET, TARGETS, (1, 8, 8), 3))


def outputs(rows: int, seed: int) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    maps = tuple(torch.rand(rows, *shape, generator=rng) for shape in STAGES)
    logits = torch.randn(rows, K, generator=rng).requires_grad_(True)
    return Outputs(logits, torch.rand(rows, 8, generator=rng), maps, maps)


def batch(method: Method, phase: str = "main") -> Batch:
    inputs = torch.rand(B + M, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Batch(inputs, torch.arange(B) % K, torch.arange(B), M)
    views = method.views(found, torch.Generator(), Progress(phase))
    return found if views is None else found._replace(inputs=torch.cat([inputs, views]))


def test_terms_and_weights_of_the_first_part_win() -> None:
    method = make("kdplus+at+rkd")
    rows = batch(method)
    student, teacher = outputs(B + M, 1), outputs(B + M, 2)
    losses = method((student,), teacher, rows, Progress())
    assert set(losses) == {"ce", "kd", "generated", "at", "rkd_dist", "rkd_angle"}
    weights = method.weights(Progress())
    assert (weights["ce"], weights["at"], weights["generated"]) == (0.1, 1000.0, 1.0)
    alone = make("rkd")((student,), teacher, rows, Progress())
    torch.testing.assert_close(losses["rkd_angle"], alone["rkd_angle"])


def test_every_part_sees_its_own_views() -> None:
    method = make("sskd+kdplus")
    assert isinstance(method, Composite)
    rows = batch(method)
    assert len(rows.inputs) == B + M + 3 * B
    student, teacher = outputs(B + M + 3 * B, 1), outputs(B + M + 3 * B, 2)
    losses = method((student,), teacher, rows, Progress())
    alone = make("sskd")
    alone.load_state_dict(method.parts["sskd"].state_dict())
    torch.testing.assert_close(losses["ss"], alone((student,), teacher, rows, Progress())["ss"])
    base = slice(0, B + M)
    plain = make("kdplus")((student.rows(base),), teacher.rows(base), rows, Progress())
    torch.testing.assert_close(losses["generated"], plain["generated"])


def test_initial_phases_come_first_and_run_alone() -> None:
    method = make("kdplus+sskd+fsp")
    phases = method.phases()
    assert [phase.name for phase in phases] == ["sskd.head", "fsp.fsp", "main"]
    assert phases[0].trains == ("method.parts.sskd.teacher_head",)
    assert not phases[0].reads.student
    # The rotations belong to sskd and do not pass through the student in the phase of fsp.
    assert len(batch(method, "fsp.fsp").inputs) == B + M
    assert len(batch(method, "sskd.head").inputs) == B + M + 3 * B
    rows = batch(method, "fsp.fsp")
    losses = method((outputs(B + M, 1),), outputs(B + M, 2), rows, Progress("fsp.fsp"))
    assert set(losses) == {"fsp"}
    for name in {t for phase in phases for t in phase.trains if t.startswith("method.")}:
        method.get_submodule(name.removeprefix("method."))


def test_labels_reach_every_student_in_any_order() -> None:
    for names in ("kd+dml", "dml+kd"):
        method = make(names, 2)
        students = (outputs(B + M, 1), outputs(B + M, 2))
        losses = method(students, outputs(B + M, 3), batch(method), Progress())
        for student in students:
            (gradient,) = torch.autograd.grad(losses["ce"], student.logits, retain_graph=True)
            assert gradient.abs().sum() > 0


def test_adapters_do_not_depend_on_the_company() -> None:
    alone, together = make("fitnet"), make("crd+fitnet")
    assert isinstance(together, Composite)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.parts["fitnet"].state_dict()[name])


def test_one_part_is_itself() -> None:
    assert not isinstance(make("kd"), Composite)
    kd = methods.get("kd")
    assert phases_of([("kd", kd.Settings())]) == kd.phases_of(kd.Settings())
