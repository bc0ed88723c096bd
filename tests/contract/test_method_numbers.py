"""Numbers at the edge, for every registered method: large logits and little precision."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from arena import (
    FABRIC,
    Arena,
    twin,
)
from cases import check, every, losses, once, trained
from torch import Tensor, nn

from fskd.methods.plan import Given
from fskd.train.alone import Alone
from fskd.train.step import Learner
from fskd.types import Outputs


def classifiers(arena: Arena) -> Iterator[nn.Linear]:
    """The last layers of all networks."""
    nets = [*arena.task.nets.values(), *getattr(arena.source, "members", [arena.source])]
    for net in nets:
        for module in net.modules():
            if isinstance(module, nn.Linear):
                yield module


@every
def test_extreme_logits(name: str, pair: str, phase: int) -> None:
    """Logits of about 1e4 give finite terms and gradients."""
    arena = Arena(name, pair, phase).begin()
    with torch.no_grad():
        for linear in classifiers(arena):
            linear.weight.mul_(1e4)
    terms = arena.terms(arena.rows())
    check(arena, terms)
    torch.stack(list(losses(arena, terms).values())).sum().backward()
    for key, parameter in trained(arena).items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every
def test_bfloat16(name: str, pair: str, phase: int) -> None:
    """Maps in bfloat16 are computed with in float32, close to what float32 maps give."""
    arena = Arena(name, pair, phase).begin()
    if arena.stretch.input_grad:
        pytest.skip("differentiates the networks, not maps: see a step in bfloat16")
    batch = arena.rows()
    given = arena.given(batch)
    low, full = twin(arena), twin(arena)
    with FABRIC.autocast(), torch.no_grad():
        found = low.terms(batch, [rounded(one) for one in given])
        expected = full.terms(batch, given)
    check(low, found)
    assert found.keys() == expected.keys()
    for term, one in expected.items():
        torch.testing.assert_close(found[term].value, one.value, rtol=0.1, atol=0.02)


@once
def test_a_step_in_bfloat16(name: str, pair: str, phase: int) -> None:
    """Under autocast, networks and adapters included."""
    arena = Arena(name, pair, phase).begin()
    fabric = Alone(torch.device("cpu"), "bf16-mixed")
    batch = arena.rows()
    from fskd.train.step import ask

    (known,) = ask(arena.teacher, batch, [arena.stretch], fabric)
    learner = Learner(arena.task, arena.stretch, arena.learner().optim, fabric)
    check(arena, learner.update(batch, known, arena.progress(), 1.0))
    assert all(p.isfinite().all() for p in arena.task.parameters())


def rounded(given: Given) -> Given:
    """The same in bfloat16."""
    several = (given,) if isinstance(given, Outputs) else given
    low = tuple(Outputs(*(_low(tap) for tap in one)) for one in several)
    return low[0] if isinstance(given, Outputs) else low


def _low(tap: Any) -> Any:
    if isinstance(tap, Tensor):
        return tap.bfloat16()
    return tuple(_low(one) for one in tap) if isinstance(tap, tuple) else tap
