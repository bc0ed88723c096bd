"""What every registered method must satisfy, whatever it matches, with real small networks.

Student and teacher are unlike in widths, depths and map sizes as far as the method allows; steps
are those of training (``ask``, ``DistillTask``, ``Learner``). Nothing here knows a method but for
the declared exceptions.
"""

import math

import pytest
import torch
from arena import (
    PAIRS,
    Arena,
    own_terms,
    parts_of,
    state,
    suits,
    twin,
)
from cases import NAMES, PAIRS_OF, check, every, losses, once, trained

from fskd.errors import SettingError
from fskd.methods.base import methods
from fskd.methods.compose import join
from fskd.methods.objective import NAMES as SHARED
from fskd.methods.words import Phase
from fskd.models.taps import FeatureNet
from fskd.registry import describe
from fskd.types import TAPS

# Players whose gradient is not that of the value, and why.
SURROGATE = {
    ("kdgan", player): "straight through: the value is of a drawn label, the gradient of a soft one"
    for player in ("main", "tutor")
} | {("adamixup", "policy"): "the rows that it makes are made before the step"}

# Methods whose students have the teacher's classifier, frozen.
TEACHERS_HEAD = ("mir", "practise")


@pytest.mark.parametrize("name", NAMES)
def test_three_unlike_pairs(name: str) -> None:
    """As unlike as the method's needs allow; what it refuses, it refuses by them, in one line."""
    found, needs = PAIRS_OF[name], methods.get(name)(methods.get(name).Settings()).needs
    assert len(found) >= 3 or (needs.equal_channels and len(found) >= 2), found
    for pair in PAIRS:
        (_, ours), (_, theirs) = PAIRS[pair]
        if needs.equal_stages and len(ours) != len(theirs):
            assert not suits(name, pair)
        if needs.equal_channels and [s[0] for s in ours] != [s[0] for s in theirs]:
            assert not suits(name, pair)


@every
def test_losses_and_gradients(name: str, pair: str, phase: int) -> None:
    """Finite, with a gradient for everything that the phase trains and none for a teacher."""
    arena = Arena(name, pair, phase).begin()
    terms = arena.terms(arena.rows())
    assert terms
    check(arena, terms)
    torch.stack(list(losses(arena, terms).values())).sum().backward()
    wanted = trained(arena)
    assert wanted
    for key, parameter in arena.task.named_parameters():
        if key in wanted:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        else:
            assert parameter.grad is None, key
    assert any(p.grad is not None and p.grad.any() for p in wanted.values())
    assert all(p.grad is None and not p.requires_grad for p in arena.source.parameters())


@once
def test_terms_reach_what_their_players_train(name: str, pair: str, phase: int) -> None:
    """A term that nobody can lower, or that another player ought to, is a mistake."""
    arena = Arena(name, pair, phase).begin()
    moves = {move.name: move.parameters for move in arena.learner().moves}
    for key, term in arena.terms(arena.rows()).items():
        own = moves[term.by]
        slopes = torch.autograd.grad(term.value, own, retain_graph=True, allow_unused=True)
        assert any(slope is not None for slope in slopes), key


@every
def test_steps_move_what_the_phase_trains_and_nothing_else(
    name: str, pair: str, phase: int
) -> None:
    """Neither weights nor running statistics of what is frozen, nor the teacher's."""
    arena = Arena(name, pair, phase).begin()
    before, source = state(arena.task), state(arena.source)
    free, learner = trained(arena), arena.learner()
    frozen = [key for key, module in arena.task.named_modules() if not module.training]
    for step in (1, 2):
        arena.update(learner, step)
    now = arena.task.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, now[key])}
    assert moved
    roles = arena.joint.roles
    averages = {f"nets.{role}" for role, one in roles.items() if one.weights == "ema"}
    for key in moved:
        if any(key.startswith(prefix) for prefix in averages):
            continue
        if key in dict(arena.task.named_parameters()):
            assert key in free, key
        elif "running" in key or "num_batches" in key:
            assert key.rpartition(".")[0] not in frozen, key
    for key, value in arena.source.state_dict().items():
        assert torch.equal(value, source[key]), key


@every
def test_one_step_lowers_the_loss(name: str, pair: str, phase: int) -> None:
    """Each player's loss falls when it moves against its gradient, memories as they were."""
    arena = Arena(name, pair, phase).begin()
    arena.update(arena.learner(), 1)
    batch = arena.rows()
    arena.task.double()
    arena.source.double()
    batch = batch._replace(inputs=batch.inputs.double())
    for player in losses(arena, twin(arena).terms(batch)):
        if (name, player) in SURROGATE:
            continue
        moving = twin(arena)
        own = next(move.parameters for move in moving.learner().moves if move.name == player)
        start = {key: value.clone() for key, value in moving.task.named_buffers()}
        before = losses(moving, moving.terms(batch))[player]
        slopes = torch.autograd.grad(before, own, allow_unused=True)
        length = math.sqrt(sum(float(x.square().sum()) for x in slopes if x is not None))
        assert length > 0, player
        with torch.no_grad():
            for key, value in moving.task.named_buffers():
                value.copy_(start[key])
            for parameter, slope in zip(own, slopes, strict=True):
                if slope is not None:
                    parameter -= 1e-5 / length * slope
        fell = before - losses(moving, moving.terms(batch))[player]
        # Not all of it: targets and normalisers that students make are constants for the gradient.
        assert fell.item() > 0.3e-5 * length, player


@pytest.mark.parametrize("name", NAMES)
def test_phases(name: str) -> None:
    """The last is ``main``; shares are positive; what is trained exists, and all of it is."""
    arena = Arena(name, PAIRS_OF[name][0])
    found = arena.joint.stretches()
    assert found[-1].name == "main"
    ever: set[int] = set()
    for stretch in found:
        assert stretch.share > 0
        assert math.isfinite(stretch.lr_scale)
        assert stretch.lr_scale > 0
        arena.task.enter(stretch)
        ever |= {id(p) for p in arena.task.parameters() if p.requires_grad}
    frozen = {
        id(p)
        for role, one in arena.joint.roles.items()
        if role in arena.task.nets and (one.weights == "ema" or not one.trains)
        for p in arena.task.nets[role].parameters()
    }
    if name in TEACHERS_HEAD:
        frozen |= {id(p) for p in arena.task.head_parameters()}
    assert {id(p) for p in arena.task.parameters()} == ever | frozen


@pytest.mark.parametrize("name", NAMES)
def test_what_is_data_is_known_from_settings(name: str) -> None:
    """Passes, roles, players and phases before any network is built."""
    cls = methods.get(name)
    method = cls(cls.Settings())
    for one in method.passes:
        assert one.taps <= set(TAPS)
    for phase in method.phases:
        assert isinstance(phase, Phase)
        assert callable(getattr(method, phase.terms))
        assert phase.objective <= set(SHARED)
    assert not method.unit & set(SHARED)
    assert not list(method.parameters())
    join(parts_of(name)).stretches()


@pytest.mark.parametrize("name", NAMES)
def test_own_terms_have_names_of_their_own(name: str) -> None:
    """None of the objective's; those on the labels' scale exist."""
    arena = Arena(name, PAIRS_OF[name][0]).begin()
    terms = arena.terms(arena.rows())
    assert arena.method.unit <= own_terms(arena, terms).keys()


@pytest.mark.parametrize("name", NAMES)
def test_description(name: str) -> None:
    """The first line of the docstring is one sentence, shown by ``--list``."""
    line = dict(describe(*methods.packages))[name]
    assert line.endswith(".")
    assert len(line) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_a_library(name: str) -> None:
    """Networks of timm, whose maps are found by tracing."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours, theirs = (FeatureNet(timm.create_model("test_resnet", num_classes=5)) for _ in range(2))
    try:
        arena = Arena(name, "wide", nets=(ours, theirs)).begin()
    except SettingError as error:
        pytest.skip(str(error))
    learner = arena.learner()
    check(arena, {**arena.update(learner, 1), **arena.update(learner, 2)})
