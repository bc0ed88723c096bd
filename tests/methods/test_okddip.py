"""OKDDip: recorded values, attention number by number, and what learns from what."""

import math
from functools import partial

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, step, taps, weighted
from steps import joint, weights
from torch import Tensor, nn
from toys import network
from toys import shapes as toy_shapes

from fskd.errors import SettingError
from fskd.methods import okddip
from fskd.methods.needs import check_needs
from fskd.methods.okddip import OKDDip, attention, peer_divergence
from fskd.methods.plan import Source
from fskd.methods.words import Role
from fskd.types import Outputs, TapShapes


def built(width: int = 16, **settings: float) -> OKDDip:
    """The method for embeddings of this width, in float64."""
    method = OKDDip(OKDDip.Settings(**settings))
    method.shapes = shapes(TapShapes((7,), (width,), (), (), ()), None, 7)
    torch.manual_seed(0)
    method.build(method.shapes)
    return method.double()


def given(leader: Tensor, peers: list[Tensor], embeddings: list[Tensor]) -> dict[str, Outputs]:
    """What the branches gave."""
    pairs = enumerate(zip(peers, embeddings, strict=True), 1)
    return {"student": Outputs(leader), **{f"peer{i}": Outputs(z, e) for i, (z, e) in pairs}}


def ours(name: str) -> str:
    """Our name of a recorded weight: ``method.query.weight`` or ``heads.<branch>.weight``."""
    _, module, tensor = name.split(".")
    if module.startswith("classifier3_"):
        return f"heads.{module[-1]}.{tensor}"
    return f"method.{module.removesuffix('_weight')}.{tensor}"


def test_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole loss with all gradients, also through the targets; the last branch leads."""
    case = Case("okddip_c1")
    # The reference's soft targets do not sum to 1.
    monkeypatch.setattr(okddip, "peer_divergence", partial(peer_divergence, eps=1e-7))
    method = built(
        n_branches=case.hp("num_branches"),
        consistency_weight=case.hp("consistency_weight"),
        temperature=case.hp("temperature"),
        reduction=4,
    )
    embeddings = case.stages("branch_emb")
    heads = nn.ModuleList(nn.Linear(16, 7) for _ in embeddings).double()
    whole = nn.ModuleDict({"method": method, "heads": heads})
    whole.load_state_dict(case.weights(ours))
    *peers, leader = (head(x) for head, x in zip(heads, embeddings, strict=True))
    case.close(torch.stack(peers, 2), "peer_logits")
    case.close(leader, "leader_logits")
    batch = real_batch(case["labels"])
    own = method.terms(step(batch, 0.9, **given(leader, peers, embeddings[:-1])))
    case.close(own["okddip_peers"].value, "loss_group")
    labels = method.settings.objective().terms
    case.close(labels(batch, peers, None)["ce"], "loss_true")
    ce = labels(batch, [leader, *peers], None)["ce"]
    case.loss(ce + weighted(own), dict(whole.named_parameters()), ours)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def kl(target: list[float], student: list[float]) -> float:
    """At T = 3, times T^2."""
    pairs = zip(softmax(target, 3.0), softmax(student, 3.0), strict=True)
    return 9 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("rows", [1, 3])
def test_slow_twin(rows: int) -> None:
    """Attention, targets and both divergences, number by number."""
    method = built(width=16)
    leader, peers = maps(rows, 5), [maps(rows, 5, seed=i) for i in (1, 2, 3)]
    embeddings = [maps(rows, 16, seed=i) for i in (4, 5, 6)]
    query, key = method.query.weight.tolist(), method.key.weight.tolist()
    assert len(query) == len(key) == 2

    def project(matrix: list[list[float]], x: list[float]) -> list[float]:
        return [sum(a * b for a, b in zip(line, x, strict=True)) for line in matrix]

    among, led = 0.0, 0.0
    for r in range(rows):
        z = [one[r].tolist() for one in peers]
        q = [project(query, e[r].tolist()) for e in embeddings]
        k = [project(key, e[r].tolist()) for e in embeddings]
        for i in range(3):
            share = softmax([sum(a * b for a, b in zip(q[i], k[j], strict=True)) for j in range(3)])
            target = [sum(share[j] * z[j][c] for j in range(3)) for c in range(5)]
            among += kl(target, z[i]) / rows
        mean = [sum(one[c] for one in z) / 3 for c in range(5)]
        led += kl(mean, leader[r].tolist()) / rows
    batch = real_batch(torch.zeros(rows, dtype=torch.long))
    own = method.terms(step(batch, 0.5, **given(leader, peers, embeddings)))
    assert own["okddip_peers"].value.item() == pytest.approx(among, rel=1e-9)
    assert own["okddip_leader"].value.item() == pytest.approx(led, rel=1e-9)


def test_gradient() -> None:
    """Through students and targets alike."""
    z, goal = maps(3, 2, 4).requires_grad_(), maps(3, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(peer_divergence, (z, goal))
    q, k = maps(3, 2, 4).requires_grad_(), maps(3, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(attention, (q, k))


def test_queries_and_keys_learn() -> None:
    """Through the peers' targets only; the peers learn from the leader's term, too."""
    method = built()
    peers = [maps(2, 7, seed=i).requires_grad_() for i in (1, 2, 3)]
    embeddings = [maps(2, 16, seed=i).requires_grad_() for i in (4, 5, 6)]
    batch = real_batch(torch.tensor([0, 1]))
    own = method.terms(step(batch, 0.5, **given(maps(2, 7), peers, embeddings)))
    moving = [*method.parameters(), *embeddings, *peers]
    led = torch.autograd.grad(own["okddip_peers"].value, moving, retain_graph=True)
    assert all(slope.abs().sum() > 0 for slope in led)
    others = torch.autograd.grad(own["okddip_leader"].value, moving, allow_unused=True)
    assert others[:-3] == (None,) * (len(moving) - 3)
    assert all(slope is not None and slope.abs().sum() > 0 for slope in others[-3:])


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_extreme_and_rounded_logits(size: float) -> None:
    """Probabilities of 0 as targets have a finite gradient; rounded logits go to float32."""
    big = torch.tensor([[size, -size, 0.0]], requires_grad=True)
    goal = torch.tensor([[-size, size, 0.0]], requires_grad=True)
    loss = peer_divergence(big, goal)
    loss.backward()
    assert loss.isfinite()
    for leaf in (big, goal):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    rounded = peer_divergence(maps(3, 5).bfloat16(), maps(3, 5, seed=1).bfloat16())
    assert rounded.dtype == torch.float32
    certain = attention(torch.full((1, 2, 1), size), torch.tensor([[[size], [-size]]]))
    assert certain.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]


def test_ramp() -> None:
    """Both weights rise over the first 80 of 300 epochs."""
    assert OKDDip.Settings().ramp == 80 / 300
    method, batch = built(consistency_weight=2.0), real_batch(torch.tensor([0]))
    seen = given(maps(1, 7), [maps(1, 7)] * 3, [maps(1, 16)] * 3)
    for fraction, share in ((0.0, math.exp(-5)), (40 / 300, math.exp(-5 / 4)), (0.5, 1.0)):
        found = weights(dict(method.terms(step(batch, fraction, **seen))))
        expected = pytest.approx(2 * share)
        assert found == {"okddip_peers": expected, "okddip_leader": expected}


def test_runs() -> None:
    """Labels reach all branches, which are run on the leader's map before its last stage."""
    run = joint("okddip", toy_shapes(network(0)))
    assert run.roles == {f"peer{i}": Role(after=-2) for i in (1, 2, 3)}
    assert run.n_students == 1
    assert run.unit >= {"okddip_peers", "okddip_leader", "ce"}
    (stretch,) = run.stretches()
    assert [one.net for one in stretch.runs] == ["student", "peer1", "peer2", "peer3"]
    assert {one.source for one in stretch.runs[1:]} == {Source(0, "stages", -2)}
    assert stretch.labelled == (0, 1, 2, 3)
    assert not stretch.asks
    assert len(joint("okddip", toy_shapes(network(0)), n_branches=3).roles) == 2


def test_measured() -> None:
    """The mean of the peers, and each of them."""
    peers = [maps(2, 7, seed=i) for i in (1, 2, 3)]
    batch = real_batch(torch.tensor([0, 1]))
    seen = step(batch, 0.0, **given(maps(2, 7), peers, [maps(2, 16)] * 3))
    found = built().measured(seen)
    torch.testing.assert_close(found["ensemble"], sum(peers[1:], peers[0]) / 3)
    assert all(torch.equal(found[f"peer{i}"], z) for i, z in enumerate(peers, 1))


def test_a_stage_before_the_last_is_needed() -> None:
    """The error counts the stages."""
    with pytest.raises(SettingError, match="at least 2 behind the stem"):
        check_needs("okddip", OKDDip.needs, shapes(taps([torch.empty(1, 8, 2, 2)]), None))
