"""AdaMixUp: mixes and losses row by row, whose gradient goes where, and intervals that give way."""

import math

import pytest
import torch
from arena import Arena, state
from steps import alone, joint, net, shapes, speak, step_of, weighted, weights
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.adamixup import AdaMixUp, drawn_pairs, interval_shares, intrusion_loss
from fskd.types import Batch, Outputs, TapShapes

SIZE = (2, 6, 5)
Pairs = list[tuple[int, int]]


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Random values in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(seed: int = 3) -> torch.Generator:
    """A stream of random numbers."""
    return torch.Generator().manual_seed(seed)


def made(of: TapShapes | None = None, size: tuple[int, ...] = SIZE, **settings: float) -> AdaMixUp:
    """The method alone, in float64; four classes, embeddings of three numbers."""
    torch.manual_seed(0)
    method = alone(joint("adamixup", shapes(of or net(), inputs=size), **settings)).double()
    assert isinstance(method, AdaMixUp)
    return method


def drawn(
    labels: list[int], pairs: list[tuple[int, int]], u: list[float], hidden: int = 0
) -> Batch:
    """Real rows, unlabelled ones, and what a generator left: classes of pairs, and shares."""
    n, known, m = len(labels), len(labels) + hidden, len(pairs)
    parts = {"unlabelled": slice(n, known), "generated": slice(known, known + m)}
    share = torch.tensor(u).double()
    return Batch(
        maps(known + m, *SIZE),
        torch.tensor(labels, dtype=torch.long),
        torch.arange(n),
        {name: rows for name, rows in parts.items() if rows.stop > rows.start},
        parents=torch.tensor(pairs).view(m, 2) if m else None,
        shares=torch.stack([share, 1 - share], 1) if m else None,
    )


BATCH = drawn([0, 1, 2, 1, 3], [(0, 1), (1, 1), (3, 2)], [0.9, 0.0, 0.4], hidden=2)


def seen(batch: Batch) -> Outputs:
    """A student that is smooth in the images."""
    flat = batch.inputs.flatten(1).tanh()
    return Outputs(flat @ maps(60, 4, seed=8), flat @ maps(60, 3, seed=9))


def ask(inputs: Tensor) -> Tensor:
    """Nobody asks the student."""
    raise AssertionError


def relabelled(method: AdaMixUp, batch: Batch, seed: int = 3) -> Batch:
    """The rows that networks see."""
    return method.relabel(batch, ask, stream(seed))


def policy_loss(method: AdaMixUp, batch: Batch) -> Tensor:
    """What the policy minimises, from the rows on."""
    found = method.terms(step_of(new := relabelled(method, batch), student=seen(new)))
    return weighted({name: term for name, term in found.items() if term.by == "policy"})


def softplus(z: float) -> float:
    """log(1 + e^z)."""
    return math.log1p(math.exp(z))


def test_slow_twin_of_rows() -> None:
    """Policy, interval, mix and labels of one pair after the other."""
    method, rng = made(), stream()
    found = relabelled(method, BATCH)
    assert found.parents is not None
    assert found.shares is not None
    first, partner = drawn_pairs(BATCH.targets, BATCH.parents, rng)
    r = torch.rand(3, generator=rng).tolist()
    for k, (i, j) in enumerate(zip(first.tolist(), partner.tolist(), strict=True)):
        x, z = BATCH.inputs[i], BATCH.inputs[j]
        scores = method.policy((r[k] * x + (1 - r[k]) * z).unsqueeze(0))[0].tolist()
        total = sum(math.exp(score) for score in scores)
        a, b = math.exp(scores[0]) / total, math.exp(scores[1]) / total
        share = a + b * BATCH.shares[k, 0].item()
        torch.testing.assert_close(found.inputs[7 + k], share * x + (1 - share) * z)
        assert found.shares[k].tolist() == pytest.approx([share, 1 - share], rel=1e-6)
        assert found.parents[k].tolist() == [BATCH.targets[i], BATCH.targets[j]]
    assert torch.equal(found.inputs[:7], BATCH.inputs[:7])
    assert (found.parts, found.targets) == (BATCH.parts, BATCH.targets)


def test_slow_twin_of_losses() -> None:
    """Each term number by number; unlabelled rows are real ones, too."""
    method = made(mixed_weight=0.7, intrusion_weight=0.3)
    rows = relabelled(method, BATCH)
    out = seen(rows)
    found = method.terms(step_of(rows, student=out))
    scores = [x.item() for x in method.discriminator(out.embedding)]
    intrusion = sum(softplus(-z) for z in scores[7:]) / 3 + sum(softplus(z) for z in scores[:7]) / 7
    mixed = 0.0
    for row, classes, shares in zip(
        out.logits[7:].tolist(), rows.parents.tolist(), rows.shares.tolist(), strict=True
    ):
        norm = math.log(sum(math.exp(z) for z in row))
        mixed += sum(w * (norm - row[c]) for c, w in zip(classes, shares, strict=True)) / 3
    expected = {"intrusion": intrusion, "policy_intrusion": intrusion, "policy_mixed": mixed}
    assert {name: one.value.item() for name, one in found.items()} == pytest.approx(expected)
    assert weights(found) == {"intrusion": 0.3, "policy_intrusion": 0.3, "policy_mixed": 0.7}
    assert found["intrusion"].by == "main"
    assert {found[name].by for name in ("policy_intrusion", "policy_mixed")} == {"policy"}


def test_pairs() -> None:
    """Rows of the classes that are asked for, never one with itself, each as often as any."""
    targets = torch.tensor([0, 1, 1, 2, 1])
    classes = torch.tensor([[1, 1], [0, 1], [2, 2], [3, 0]] * 300)
    first, partner = drawn_pairs(targets, classes, stream())
    assert (first != partner).all()
    there = torch.tensor([True, True, False, False] * 300)
    assert torch.equal(targets[first[there]], classes[there, 0])
    assert torch.equal(targets[partner[there]], classes[there, 1])
    counts = first[::4].bincount(minlength=5)
    assert counts[[0, 3]].sum() == 0
    assert counts[[1, 2, 4]].min() > 70
    one = drawn_pairs(torch.tensor([2]), torch.tensor([[2, 2]]), stream())
    assert [x.item() for x in one] == [0, 0]
    before = torch.get_rng_state()
    again = drawn_pairs(targets, classes, stream())
    assert torch.equal(torch.stack(again), torch.stack((first, partner)))
    assert torch.equal(before, torch.get_rng_state())


def test_gradcheck() -> None:
    """Numeric and closed-form gradients of both formulas."""
    scores, u = maps(4, 3).requires_grad_(), torch.rand(4, generator=stream()).double()
    assert torch.autograd.gradcheck(lambda s: interval_shares(s, u), scores)
    assert torch.autograd.gradcheck(
        intrusion_loss, (maps(3).requires_grad_(), maps(5, seed=1).requires_grad_())
    )


def test_policy_moves_against_its_loss() -> None:
    """Its gradient is that of everything that hangs on its shares: images and labels alike."""
    method = made()
    own = list(method.policy.parameters())
    slopes = torch.autograd.grad(policy_loss(method, BATCH), own)
    with torch.no_grad():
        for parameter, slope in zip(own, slopes, strict=True):
            parameter += 1e-6 * slope
        above = policy_loss(method, BATCH)
        for parameter, slope in zip(own, slopes, strict=True):
            parameter -= 2e-6 * slope
        below = policy_loss(method, BATCH)
    squared = sum(slope.square().sum().item() for slope in slopes)
    assert squared > 1e-8
    assert ((above - below) / 2e-6).item() == pytest.approx(squared, rel=1e-4)


def test_nothing_leaks() -> None:
    """Students and the discriminator learn from real and mixed rows; players move their own."""
    of = joint("adamixup", shapes(inputs=SIZE)).double()
    assert {name: one.trains for name, one in of.players.items()}["policy"] == (
        "method.parts.adamixup.policy",
    )
    method = alone(of)
    rows = relabelled(method, BATCH)
    out = Outputs(*(one.detach().requires_grad_() for one in seen(rows)[:2]))
    found = speak(of, {"student": out}, rows)
    assert found.keys() == {"ce", "mixed", "intrusion", "policy_intrusion", "policy_mixed"}
    found["intrusion"].value.backward(retain_graph=True)
    assert (out.embedding.grad.abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in method.discriminator.parameters())
    assert {"ce", "mixed"} <= of.unit
    assert not {"intrusion", "policy_intrusion", "policy_mixed"} & of.unit


@pytest.mark.parametrize(
    ("labels", "pairs", "hidden"),
    [([], [(0, 1)], 2), ([], [(0, 1)], 0), ([1, 2], [], 1), ([1], [], 0)],
)
def test_without_mixes(labels: list[int], pairs: Pairs, hidden: int) -> None:
    """Nothing is mixed without real rows or without generated ones; the rest stays."""
    method, batch = made(), drawn(labels, pairs, [0.5] * len(pairs), hidden)
    assert relabelled(method, batch) is batch
    assert not method.terms(step_of(batch, student=seen(batch)))


@pytest.mark.parametrize("labels", [[2], [2, 2, 2]])
def test_one_row_and_one_class(labels: list[int]) -> None:
    """Finite, with a gradient; views behind the mixes stay where they are."""
    batch = drawn(labels, [(2, 2)], [0.5])
    n = len(labels)
    batch = batch._replace(
        inputs=torch.cat([batch.inputs, maps(2, *SIZE, seed=4)]),
        parts={**batch.parts, "turned": slice(n + 1, n + 3)},
    )
    rows = relabelled(method := made(), batch)
    assert torch.equal(rows.inputs[n + 1 :], batch.inputs[n + 1 :])
    weighted(method.terms(step_of(rows, student=seen(rows)))).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_labels_of_mixes_may_be_left_out() -> None:
    """Then intrusion alone moves the policy, and parents without a class do no harm."""
    method, batch = made(mixed_weight=0.0), drawn([1, 2], [(-1, 2), (1, -1)], [0.2, 0.3], hidden=1)
    rows = relabelled(method, batch)
    assert (rows.parents >= 0).all()
    found = method.terms(step_of(rows, student=seen(rows)))
    assert found.keys() == {"intrusion", "policy_intrusion"}


@pytest.mark.parametrize("factor", [0.0, 1e4, 1e30])
def test_extreme_values(factor: float) -> None:
    """Sure policies and discriminators: shares in [0, 1], finite gradients in float32."""
    scores = (factor * maps(4, 3)).float().requires_grad_()
    share = interval_shares(scores, torch.tensor([0.0, 0.3, 1.0, 1.0]))
    assert ((share >= 0) & (share <= 1 + 1e-6)).all()
    marks = (factor * maps(6)).float().requires_grad_()
    loss = intrusion_loss(marks[:3], marks[3:])
    assert loss.isfinite()
    (loss + share.sum()).backward()
    assert scores.grad.isfinite().all()
    assert marks.grad.isfinite().all()
    half = intrusion_loss(marks[:3].bfloat16(), marks[3:].bfloat16())
    assert half.dtype == interval_shares(scores.bfloat16(), torch.rand(4)).dtype == torch.float32


def mean_mix(real: float) -> float:
    """Where mixes of -1 and 1 lie in the end, when further real images lie at ``real``."""
    bumps, size, m = torch.linspace(-1, 1, 9).double(), (1, 4, 4), 32
    method = made(net(dim=len(bumps)), size, mixed_weight=0.0)
    slow, fast = method.policy.parameters(), method.discriminator.parameters()
    moving = torch.optim.Adam([{"params": fast, "lr": 0.1}, {"params": slow}], lr=0.003)
    labels, places = torch.arange(m) % 2, list[float]()
    hidden = torch.full((m // 2,), real)
    known = m + len(hidden)
    parts = {"unlabelled": slice(m, known), "generated": slice(known, known + m)}
    values = torch.cat([2.0 * labels - 1, hidden, torch.zeros(m)]).double()
    images = values.view(-1, 1, 1, 1).expand(-1, *size)
    parents = torch.tensor([[0, 1]]).expand(m, 2)
    for step in range(200):
        u = torch.rand(m, generator=stream(step))
        shares = torch.stack([u, 1 - u], 1)
        batch = Batch(images, labels, torch.arange(m), parts, parents=parents, shares=shares)
        rows = relabelled(method, batch, step)
        place = rows.inputs.mean((1, 2, 3))
        embedding = (-(place[:, None] - bumps).square() / 0.04).exp()
        given = Outputs(torch.zeros(len(place), 4).double(), embedding)
        moving.zero_grad()
        method.terms(step_of(rows, student=given))["policy_intrusion"].value.backward()
        moving.step()
        places.append(place[known:].mean().item())
    return sum(places[-20:]) / 20


def test_intervals_give_way_to_real_images() -> None:
    """What it is for: mixes leave the side on which they would look like real images."""
    assert mean_mix(0.3) < -0.2
    assert mean_mix(-0.3) > 0.2


def test_it_stands_alone() -> None:
    """Its rows are no place for another method's labels."""
    with pytest.raises(SettingError, match="'adamixup' beside kdplus is not accepted"):
        joint("kdplus+adamixup", shapes(inputs=SIZE)).stretches()


def test_in_a_run() -> None:
    """A generator is there; the teacher is asked with a weight only; one process."""
    (plain,) = joint("adamixup", shapes(inputs=SIZE)).stretches()
    assert (plain.generated, plain.asks) == (True, False)
    (taught,) = joint("adamixup", shapes(inputs=SIZE), kd_weight=0.9).stretches()
    assert taught.asks
    assert AdaMixUp.default_generator == "mixup"
    assert AdaMixUp.needs.one_process


def test_update_moves_the_policy() -> None:
    """Through the step's own backward passes, each player by its optimiser."""
    arena = Arena("adamixup", "wide").begin()
    before = state(arena.joint)
    arena.update(arena.learner(), 1)
    moved = {
        name for name, x in arena.joint.state_dict().items() if not torch.equal(x, before[name])
    }
    assert moved == set(before)
