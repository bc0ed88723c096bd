"""AFD: every player's loss number by number, and discriminators that cannot tell in the end."""

import math

import pytest
import torch
from steps import alone, batch, joint, net, shapes, speak, step_of, weighted, weights
from torch import Tensor

from fskd.methods.afd import AFD, deceit_loss, judge_loss
from fskd.types import Outputs

SHAPE = (2, 3, 3)


def maps(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random maps in float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=rng, dtype=torch.float64)


def made(n: int = 2, shape: tuple[int, ...] = SHAPE, **settings: float) -> AFD:
    """AFD alone, in float64."""
    torch.manual_seed(0)
    of = shapes(net(stages=(shape,)))
    method = alone(joint("afd", of, n_students=n, **settings)).double()
    assert isinstance(method, AFD)
    return method


def outputs(n: int, rows: int = 4) -> list[Outputs]:
    """What n students gave."""
    logits = [maps(rows, 10 + i, (4,)).requires_grad_() for i in range(n)]
    features = [maps(rows, 20 + i).requires_grad_() for i in range(n)]
    return [Outputs(z, stages=(f,)) for z, f in zip(logits, features, strict=True)]


def tell(method: AFD, given: list[Outputs]) -> dict:
    """Terms of one step."""
    nets = dict(zip(method.labelled, given, strict=True))
    return dict(method.terms(step_of(batch(len(given[0].stages[0])), **nets)))


def slow_kl(p: list[float], q: list[float], temperature: float) -> float:
    """T^2 KL(p || q) of the softened logits of one row."""
    a, b = ([math.exp(z / temperature) for z in row] for row in (p, q))
    a, b = ([x / sum(row) for x in row] for row in (a, b))
    return temperature**2 * sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("n", [2, 3])
def test_slow_twin(n: int) -> None:
    """Each student follows the next one; each discriminator tells the next one from its own."""
    method, given = made(n), outputs(n)
    found = tell(method, given)
    moved = [layer(one.stages[0]) for layer, one in zip(method.transfers, given, strict=True)]
    mutual = deceit = judged = 0.0
    for i, judge in enumerate(method.judges):
        j = 0 if i == n - 1 else i + 1
        pairs = zip(given[j].logits.tolist(), given[i].logits.tolist(), strict=True)
        mutual += sum(slow_kl(p, q, 3.0) for p, q in pairs) / 4
        real, fake = judge(moved[j]).tolist(), judge(moved[i]).tolist()
        judged += sum((1 - r) ** 2 + f**2 for r, f in zip(real, fake, strict=True)) / 4
        deceit += sum((1 - f) ** 2 for f in fake) / 4
    for name, expected in (("mutual", mutual), ("deceit", deceit), ("judged", judged)):
        assert found[f"afd_{name}"].value.item() == pytest.approx(expected, rel=1e-10), name


def test_gradcheck() -> None:
    """Numeric and closed-form gradients of both games, through a discriminator too."""
    real, fake = torch.rand(2, 3, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(judge_loss, (real, fake))
    assert torch.autograd.gradcheck(deceit_loss, fake)
    judge = made().judges[0]
    x = maps(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: deceit_loss(judge(m)), x)


def test_nothing_leaks() -> None:
    """The deceit reaches its own student only, what judges learn reaches judges only."""
    method, given = made(3), outputs(3)
    found = tell(method, given)
    found["afd_judged"].value.backward(retain_graph=True)
    assert all(one.stages[0].grad is None for one in given)
    assert all(p.grad is None for p in method.transfers.parameters())
    assert all(p.grad is not None for p in method.judges.parameters())
    method.zero_grad()
    found["afd_deceit"].value.backward()
    assert all(p.grad is None for p in method.judges.parameters())
    assert all(p.grad is not None for p in method.transfers.parameters())
    fake = method.judges[1](method.transfers[1](given[1].stages[0]))
    (own,) = torch.autograd.grad(deceit_loss(fake), given[1].stages[0])
    torch.testing.assert_close(given[1].stages[0].grad, own)


@pytest.mark.parametrize("factor", [0.0, 1e-8, 1e4, 1e10])
def test_extreme_values(factor: float) -> None:
    """Finite in float32: batch norm takes the scale, logits are compared in logarithms."""
    method = made().float()
    given = [
        Outputs(
            (min(factor, 1e4) * maps(3, i, (4,))).float(), stages=(factor * maps(3, i).float(),)
        )
        for i in range(2)
    ]
    for one in given:
        one.logits.requires_grad_()
        one.stages[0].requires_grad_()
    found = tell(method, given)
    weighted(found).backward()
    assert all(term.value.isfinite() for term in found.values())
    assert all(one.logits.grad.isfinite().all() for one in given)
    assert all(one.stages[0].grad.isfinite().all() for one in given)


@pytest.mark.parametrize(("real", "generated"), [(1, 0), (0, 1), (1, 1), (3, 0), (0, 2)])
def test_rows(real: int, generated: int) -> None:
    """All rows count; a single one cannot be normalised; who minimises what."""
    n = real + generated
    of = joint("afd", shapes(net(stages=(SHAPE,)))).double()
    names = ("student", *of.roles)
    nets = {name: one for name, one in zip(names, outputs(2, n), strict=True)}
    found = speak(of, nets, batch(real, generated))
    own = {"afd_mutual": 1.0, "afd_deceit": 0.1, "afd_judged": 1.0} if n > 1 else {}
    assert weights(found) == ({"ce": 1.0} if real else {}) | own
    if n > 1:
        assert {k for k, term in found.items() if term.by == "discriminators"} == {"afd_judged"}
    assert {"ce", "afd_mutual"} <= of.unit
    assert not {"afd_deceit", "afd_judged"} & of.unit


def test_single_pixels() -> None:
    """Two rows of maps of one pixel are enough."""
    method = made(shape=(3, 1, 1))
    given = [Outputs(maps(2, i, (4,)), stages=(maps(2, i, (3, 1, 1)),)) for i in range(2)]
    assert all(term.value.isfinite() for term in tell(method, given).values())


def test_players() -> None:
    """Adam for the discriminators; transfer layers are trained with the students."""
    method = made(lr=0.003)
    assert method.players["discriminators"].trains == ("method.judges",)
    assert method.players["discriminators"].optim["lr"] == 0.003
    assert set(method.players) == {"main", "discriminators"}
    given = outputs(2)
    step = step_of(batch(4), **dict(zip(method.labelled, given, strict=True)))
    assert torch.equal(method.measured(step)["fellow1"], given[1].logits)


def test_discriminators_cannot_tell_in_the_end() -> None:
    """Alone they learn to tell two students apart; once the students learn, they guess again."""
    method = made()
    # Channels that rise together and channels of which one falls: batch norm hides scale and mean.
    weights_ = torch.tensor([[2.0, 2.0], [2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    judging = torch.optim.Adam(method.judges.parameters(), lr=0.02)
    learning = torch.optim.Adam([weights_, *method.transfers.parameters()], lr=0.02)

    def given(seed: int) -> list[Outputs]:
        found = []
        for i in range(2):
            common = maps(32, 4 * seed + i, (1, 3, 3)) * weights_[i].view(1, 2, 1, 1)
            found.append(common + 0.3 * maps(32, 4 * seed + 2 + i))
        return [Outputs(torch.zeros(32, 4).double(), stages=(one,)) for one in found]

    def play(steps: int, students: bool, start: int) -> float:
        """What each judge lost in the last steps: 0 is certainty, 0.5 a guess."""
        lost = []
        for seed in range(start, start + steps):
            found = tell(method, given(seed))
            method.zero_grad()
            learning.zero_grad()
            # What the students minimise has no gradient in the judges, and the reverse.
            (found["afd_judged"].value + found["afd_deceit"].value).backward()
            judging.step()
            if students:
                learning.step()
            lost.append(found["afd_judged"].value.item() / 2)
        return sum(lost[-50:]) / 50

    assert play(250, students=False, start=0) < 0.3
    assert play(300, students=True, start=1000) > 0.45
