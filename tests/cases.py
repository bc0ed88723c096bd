"""Every method in every phase on unlike networks, as parameters of a test."""

import math

import pytest
import torch
from arena import (
    Arena,
    pairs_of,
)
from torch import Tensor, nn

from fskd.methods.base import methods
from fskd.methods.words import Term
from fskd.train.step import total_loss

NAMES = methods.names()
PAIRS_OF = {name: pairs_of(name) for name in NAMES}


def phases(name: str) -> int:
    """Number of phases under default settings."""
    return len(methods.get(name)(methods.get(name).Settings()).phases)


CASES = [
    pytest.param(name, pair, i, id=f"{name}-{pair}-{i}")
    for name in NAMES
    for pair in PAIRS_OF[name]
    for i in range(phases(name))
]
FIRST = [case for case in CASES if case.values[1] == PAIRS_OF[str(case.values[0])][0]]
every = pytest.mark.parametrize(("name", "pair", "phase"), CASES)
once = pytest.mark.parametrize(("name", "pair", "phase"), FIRST)


def losses(arena: Arena, terms: dict[str, Term]) -> dict[str, Tensor]:
    """What each player minimises."""
    found = {}
    for player in arena.joint.players:
        own = {name: term for name, term in terms.items() if term.by == player}
        if own:
            found[player] = total_loss(own, arena.joint.unit)
    return found


def check(arena: Arena, terms: dict[str, Term]) -> None:
    """Finite scalars in full precision with weights that make sense, of players that exist."""
    for name, term in terms.items():
        assert isinstance(term, Term), name
        assert term.value.shape == (), name
        assert term.value.isfinite(), name
        assert term.value.dtype == torch.float32, name
        assert math.isfinite(term.weight), name
        assert term.weight >= 0, name
        assert term.by in arena.joint.players, name


def trained(arena: Arena) -> dict[str, nn.Parameter]:
    """What the phase updates."""
    return {name: p for name, p in arena.task.named_parameters() if p.requires_grad}
