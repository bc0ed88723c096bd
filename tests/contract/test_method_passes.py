"""What every registered method declares, and what it keeps: taps, targets, state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from arena import (
    Arena,
    leaves,
    tensors,
)
from cases import once, phases
from torch import Tensor

from fskd.methods.base import Method, Step
from fskd.types import TAPS, Outputs

# Losses whose targets are meant to get a gradient, and why.
UNDETACHED = {"okddip": "queries and keys learn through the targets only"}
# Losses that take a target, by their second argument.
TARGETED = ("kl_div", "mse_loss", "smooth_l1_loss", "l1_loss", "cross_entropy", "huber_loss")


@once
def test_everything_that_is_kept_is_registered(name: str, pair: str, phase: int) -> None:
    """Tensors of a method are parameters or buffers, or they are neither saved nor moved."""
    arena = Arena(name, pair, phase).begin()
    learner = arena.learner()
    arena.update(learner, 1)
    for path, module in arena.joint.named_modules():
        for key, value in vars(module).items():
            if key == "shapes":
                continue  # of the subset; every run has it
            several = value if isinstance(value, list | tuple) else [value]
            loose = [one for one in several if isinstance(one, Tensor)]
            assert not loose, f"{path}.{key}"


@once
def test_buffers_are_used(name: str, pair: str, phase: int) -> None:
    """What a method remembers moves when a phase begins or when steps are made."""
    if phase != phases(name) - 1:
        pytest.skip("the last phase is shared")
    arena = Arena(name, pair, phase)
    method = arena.method
    buffers = {key: value.clone() for key, value in method.named_buffers()}
    arena.begin()
    begun = {key: value.clone() for key, value in method.named_buffers()}
    if type(method).begin is not Method.begin and buffers:
        assert any(not torch.equal(value, begun[key]) for key, value in buffers.items())
    learner = arena.learner()
    for step in (1, 2):
        arena.update(learner, step)
    for key, value in method.named_buffers():
        if method.get_submodule(key.rpartition(".")[0]).training:
            assert not torch.equal(value, buffers[key]), key


class Watched(Outputs):
    """Outputs that note which taps are read, and refuse those that were not declared."""

    def taps(self, declared: frozenset[str], seen: set[str]) -> "Watched":
        self.declared, self.seen = declared, seen
        return self

    def __getattribute__(self, name: str) -> Any:
        if name in TAPS:
            assert name in self.declared, f"the tap {name} is read and was not declared"
            self.seen.add(name)
        return super().__getattribute__(name)

    def rows(self, index: Any) -> "Watched":
        values = Outputs(*tuple(self)).rows(index)
        return Watched(*values).taps(self.declared, self.seen)


@once
def test_declared_taps_are_touched_taps(name: str, pair: str, phase: int) -> None:
    """No tap is read that was not declared, and none is declared that nobody reads."""
    arena = Arena(name, pair, phase).begin()
    batch = arena.rows()
    given, (voice,) = arena.given(batch), arena.stretch.voices
    method = arena.method
    asked = method.passes if voice.phase.passes is None else voice.phase.passes
    seen: dict[str, set[str]] = {one.name: set() for one in asked}
    outputs: dict[str, Any] = {}
    for one in asked:
        found = given[voice.runs[one.name]]
        several = (found,) if isinstance(found, Outputs) else found
        watched = tuple(Watched(*x).taps(one.taps, seen[one.name]) for x in several)
        outputs[one.name] = watched[0] if isinstance(found, Outputs) else watched
    rows = batch.part(method.rows)
    whole = rows == slice(0, len(batch.inputs))
    step = Step(outputs, batch, arena.progress(), None if whole else rows)
    getattr(method, voice.phase.terms)(step)
    method.measured(step)
    for one in asked:
        source, _, rest = one.on.partition(".")
        if source in seen:
            seen[source].add(rest.partition(".")[0])
    objective = arena.stretch.objective
    for one in asked:
        number = voice.runs[one.name]
        taught = objective is not None and (
            number in arena.stretch.labelled or number == arena.stretch.teacher
        )
        unread = one.taps - seen[one.name] - ({"logits"} if taught else set())
        assert not unread, f"pass '{one.name}' declares {sorted(unread)} and reads it nowhere"


@once
def test_targets_are_constants(
    name: str, pair: str, phase: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the teacher gave nor soft targets that students made get a gradient."""
    arena = Arena(name, pair, phase).begin()

    def guarded(loss: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(guess: Tensor, target: Tensor, *rest: Any, **more: Any) -> Any:
            assert name in UNDETACHED or not target.requires_grad, f"a target of {kind}"
            return loss(guess, target, *rest, **more)

        return call

    for kind in TARGETED:
        monkeypatch.setattr(F, kind, guarded(getattr(F, kind), kind))
    batch = arena.rows()
    given, runs = leaves(arena.given(batch), arena.stretch.input_grad), arena.stretch.runs
    terms = arena.terms(batch, given)
    torch.stack(
        [term.value for term in terms.values() if term.value.requires_grad]
    ).sum().backward()
    for run, one in zip(runs, given, strict=True):
        if run.asks and not run.input_grad:
            assert all(x.grad is None for x in tensors(one)), run


@once
def test_deterministic_and_state_round_trips(name: str, pair: str, phase: int) -> None:
    """Equal states give equal values, whatever the global generator does."""
    first, second = Arena(name, pair, phase).begin(), Arena(name, pair, phase)
    learner = first.learner()
    for step in (1, 2):
        torch.manual_seed(step)
        first.update(learner, step)
    second.task.load_state_dict(first.task.state_dict())
    torch.manual_seed(1)
    expected = first.terms(first.rows())
    torch.manual_seed(2)
    actual = second.terms(second.rows())
    assert expected.keys() == actual.keys()
    for term, one in expected.items():
        assert torch.equal(one.value, actual[term].value), term
        assert one[1:] == actual[term][1:]


@once
def test_equal_builds(name: str, pair: str, phase: int) -> None:
    """Adapters and memories come from the run's seed, not from the global generator."""
    torch.manual_seed(1)
    first = Arena(name, pair, phase)
    torch.manual_seed(2)
    second = Arena(name, pair, phase)
    for key, value in first.joint.state_dict().items():
        assert torch.equal(value, second.joint.state_dict()[key]), key
