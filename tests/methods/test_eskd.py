"""ESKD: what is learned before and after the teacher is left."""

import pytest
import torch
from recorded import maps
from steps import batch, joint, phase, speak, values, weights
from tiny import shapes_of, task_of, tiny

from fskd.errors import SettingError
from fskd.losses.targets import cross_entropy, kl_divergence
from fskd.resolve import resolve
from fskd.train.loop import spans
from fskd.train.step import total_loss
from fskd.types import Outputs


def test_terms_of_both_phases() -> None:
    """KD, then labels, whose weight alone divides the total: they count fully then."""
    run, rows = joint("eskd"), batch(3)
    student, teacher = maps(3, 4), maps(3, 4, seed=1)
    nets = {"student": Outputs(student), "teacher": Outputs(teacher)}
    first, second = (speak(run, nets, rows, name) for name in ("followed", "main"))
    ce, kd = cross_entropy(student, rows.targets), kl_divergence(student, teacher, 4.0)
    assert weights(first) == {"ce": 0.1, "kd": 0.9}
    torch.testing.assert_close(values(first), {"ce": ce, "kd": kd})
    torch.testing.assert_close(total_loss(first, run.unit), 0.1 * ce + 0.9 * kd)
    assert second.keys() == {"ce"}
    torch.testing.assert_close(total_loss(second, run.unit), ce)


def test_the_teacher_is_asked_until_it_is_left() -> None:
    """Nor are rows generated or unlabelled ones read afterwards."""
    run = joint("eskd")
    reads = [(one.name, one.asks, one.generated, one.unlabelled) for one in run.stretches()]
    assert reads == [("followed", True, True, True), ("main", False, False, False)]


@pytest.mark.parametrize("stop", [0.25, 0.5])
def test_schedule(stop: float) -> None:
    """One learning-rate schedule over both phases, which share the steps as asked."""
    run = joint("eskd", stop=stop)
    first, second = spans(run.stretches(), 40)
    assert (first.start, first.end, second.end) == (0, 40 * stop, 40)
    assert {(one.schedule_start, one.schedule_end) for one in (first, second)} == {(0, 40)}
    assert not phase(run).restart


def test_all_of_the_student_is_trained_in_both() -> None:
    """What goes on must train the same parameters."""
    net = tiny(3, (6, 1, 1), classes=5, seed=0)
    run = joint("eskd", shapes_of(net, net, 8))
    task = task_of(run, [net], net)
    for stretch in run.stretches():
        task.enter(stretch)
        assert all(p.requires_grad for p in task.parameters())


def test_settings() -> None:
    """An early-stopped teacher is a setting of its budget; labels must have a weight."""
    early = resolve({"method": "eskd", "teacher": {"budget": {"epochs": 10}}})
    usual = resolve({"method": "eskd"})
    assert early.teacher_run().budget.epochs == 10
    assert usual.teacher_run().key() == resolve({"method": "kd"}).teacher_run().key()
    assert early.teacher_run().key() != usual.teacher_run().key()
    for name, value in (("stop", 0.0), ("stop", 1.0), ("ce_weight", 0.0)):
        with pytest.raises(SettingError, match=f"method.{name}"):
            resolve({"method": {"name": "eskd", name: value}})


def test_one_row_and_extreme_logits() -> None:
    """Finite in both phases."""
    run, big = joint("eskd"), torch.tensor([[1e4, -1e4, 0.0, 1.0]])
    leaf = big.clone().requires_grad_()
    nets = {"student": Outputs(leaf), "teacher": Outputs(-big)}
    for name in ("followed", "main"):
        leaf.grad = None
        loss = total_loss(speak(run, nets, batch(1), name), run.unit)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
