"""Progressive blockwise KD: maps number by number, and networks of two halves."""

from typing import Any

import pytest
import torch
from arena import Arena, K
from recorded import maps, shapes, taps
from steps import joint
from tiny import tiny

from fskd.errors import SettingError
from fskd.methods.blockwise import Blockwise, block_loss

STAGES = ((4, 2, 1), (5, 1, 1), (6, 2, 1))


def arena(phase: int) -> Any:
    """Three blocks; the teacher has another stem."""
    nets = tiny(3, *STAGES, classes=K), tiny(7, *STAGES, classes=K, seed=5)
    return Arena("blockwise", "deep", phase, nets)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_slow_twin(block: int) -> None:
    """The mean of squares of one block, number by number; nothing for others or the teacher."""
    sizes = [(2, 3, 5, 2), (2, 1, 1, 1), (2, 4, 3, 3)]
    ours = [maps(*one).requires_grad_(True) for one in sizes]
    theirs = [maps(*one, seed=7).requires_grad_(True) for one in sizes]
    s, t = (one[block].flatten().tolist() for one in (ours, theirs))
    expected = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    loss = block_loss(ours, theirs, block)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert [bool(one.grad is not None and one.grad.any()) for one in ours] == [
        i == block for i in range(3)
    ]
    assert all(one.grad is None for one in theirs)


@pytest.mark.parametrize("phase", [0, 1])
def test_the_teacher_continues_the_student(phase: int) -> None:
    """Labels are learned through the teacher's later blocks, by the student's first ones only."""
    run = arena(phase)
    batch = run.rows()
    terms = run.terms(batch)
    teacher, own = run.source.eval(), run.task.nets["student"]
    x = own(batch.inputs, frozenset({"stages"})).stages[phase]
    for i in range(phase + 1, 3):
        x = teacher.net.stage(i, x)[0]
    logits = teacher.net.head(x)[1][: batch.n_real]
    expected = torch.nn.functional.cross_entropy(logits, batch.targets)
    torch.testing.assert_close(terms["ce"].value, expected)
    sum(term.weight * term.value for term in terms.values()).backward()
    moved = [any(p.grad.any() for p in block.parameters()) for block in own.net.blocks]
    assert moved == [i <= phase for i in range(3)]
    assert own.net.fc.weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_phases() -> None:
    """One a block, equally long; the last trains the whole student on its own logits."""
    run = arena(-1)
    found = run.joint.stretches()
    assert [(one.name, one.share) for one in found] == [("block0", 1), ("block1", 1), ("main", 1)]
    assert [one.runs[one.labelled[0]].net for one in found] == ["tail0", "tail1", "student"]
    assert Blockwise.roles == {}
    terms = run.terms(run.rows())
    assert {name: term.weight for name, term in terms.items()} == {"ce": 1, "block": 1}


def test_in_a_composition() -> None:
    """Phases bear the method's name there, and the student is run once in the main phase."""
    same: Any = taps([maps(1, 4, 4, 4), maps(1, 5, 2, 2)])
    found = joint("blockwise+at", shapes(same, same)).stretches()
    assert [one.name for one in found] == ["blockwise.block0", "main"]
    assert [run.net for run in found[-1].runs] == ["student", "teacher"]
    assert found[-1].labelled == (0,)


def test_what_it_is_for() -> None:
    """A few steps of a phase bring the block's map nearer to the teacher's."""
    run = arena(0)
    learner, before = run.learner(), run.terms(run.rows())["block"].value
    for step in range(20):
        run.update(learner, step)
    assert run.terms(run.rows())["block"].value < 0.9 * before


def test_unlike_maps_are_refused() -> None:
    """The teacher could not continue."""
    ours, theirs = taps([maps(1, 4, 4, 4)]), taps([maps(1, 4, 2, 2)])
    with pytest.raises(SettingError, match="equal stages"):
        joint("blockwise", shapes(ours, theirs))
