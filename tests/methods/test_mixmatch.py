"""MixMatch: recorded values, labels and mixes row by row, and what happens to other rows."""

from collections.abc import Callable

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, step, taps, weighted
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods import mixmatch
from fskd.methods.base import methods
from fskd.methods.compose import join
from fskd.methods.mixmatch import MixMatch, draw, guessed_labels, mixed, squared_error
from fskd.train.batches import with_rows
from fskd.types import Batch, Outputs, Progress


def built(**settings: float) -> MixMatch:
    """The method for ten classes."""
    method = MixMatch(MixMatch.Settings(**settings))
    method.shapes = shapes(taps([]), None)
    method.build(method.shapes)
    return method


def drawn(real: Tensor, labels: Tensor, *views: Tensor) -> Batch:
    """Real rows, then views of unlabelled ones."""
    batch = real_batch(labels)._replace(inputs=real)
    return with_rows(batch, "unlabelled", torch.cat(views))


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A network that is one linear map."""
    return lambda inputs: inputs.flatten(1) @ weight


def test_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses, mixed labels, both terms, and the gradient of a linear network."""
    case = Case("mixmatch_c1")
    names = "temperature", "alpha", "lambda_u"
    hyper = zip(names, ("T", "alpha", "lambda_u"), strict=True)
    method = built(**{name: float(case.hp(theirs)) for name, theirs in hyper})
    assert method.settings == MixMatch.Settings()
    lam = max(case.hp("lam_drawn"), 1 - case.hp("lam_drawn"))
    monkeypatch.setattr(mixmatch, "draw", lambda n, alpha, rng: (case["perm"], lam))
    batch = drawn(case["x"], case["labels"], case["u1"], case["u2"])
    net = linear(case["W"])
    with torch.no_grad():
        guess = guessed_labels([net(case["u1"]), net(case["u2"])], case.hp("T"))
        batch = method.relabel(batch, net, torch.Generator())
    case.close(guess, "targets_u")
    assert batch.soft is not None
    case.close(batch.soft, "mixed_target")
    terms = method.terms(step(batch, case.hp("ramp"), student=Outputs(net(batch.inputs))))
    case.close(terms["labelled"].value, "Lx")
    case.close(terms["guessed"].value, "Lu")
    case.loss(weighted(terms))


def test_slow_twin() -> None:
    """Guesses, mixes and errors number by number, B and U unlike."""
    first, second = maps(3, 5), maps(3, 5, seed=1)
    guess = guessed_labels([first, second], 0.3)
    for row in range(3):
        views = [one[row].exp() / one[row].exp().sum() for one in (first, second)]
        powers = [((a.item() + b.item()) / 2) ** (1 / 0.3) for a, b in zip(*views, strict=True)]
        expected = [power / sum(powers) for power in powers]
        assert guess[row].tolist() == pytest.approx(expected, rel=1e-10)
    rows, order = maps(4, 2, 3, 1), torch.tensor([2, 0, 3, 1])
    made = mixed(rows, order, 0.8)
    for i, j in enumerate(order.tolist()):
        both = zip(rows[i].flatten().tolist(), rows[j].flatten().tolist(), strict=True)
        assert made[i].flatten().tolist() == pytest.approx([0.8 * a + 0.2 * b for a, b in both])
    probs = maps(3, 5, seed=2).softmax(1)
    pairs = zip(first.softmax(1).flatten().tolist(), probs.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / 15
    assert squared_error(first, probs).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n_real", "n_images"), [(1, 1), (5, 2), (2, 7)])
def test_rows(n_real: int, n_images: int) -> None:
    """Both views have one guess; others rows stay; the same draw for images and labels."""
    method, rng = built(), torch.Generator().manual_seed(3)
    real, views = maps(n_real, 1, 2, 5), [maps(n_images, 1, 2, 5, seed=i) for i in (1, 2)]
    labels = torch.arange(n_real) % 10
    batch = with_rows(drawn(real, labels, *views), "generated", maps(3, 1, 2, 5, seed=4))
    net = linear(torch.eye(10, dtype=torch.float64))
    made = method.relabel(batch, net, rng)
    n = n_real + 2 * n_images
    assert made.soft is not None
    assert made.soft.shape == (n, 10)
    torch.testing.assert_close(made.soft.sum(1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(made.inputs[n:], batch.inputs[n:], rtol=0, atol=0)
    assert made.parts == batch.parts
    order, share = draw(n, 0.75, torch.Generator().manual_seed(3))
    assert 0.5 <= share <= 1
    torch.testing.assert_close(made.inputs[:n], mixed(batch.inputs[:n], order, share))
    guess = guessed_labels([net(view) for view in views], 0.5)
    truth = torch.nn.functional.one_hot(labels, 10).double()
    torch.testing.assert_close(made.soft, mixed(torch.cat([truth, guess, guess]), order, share))
    logits = maps(n + 3, 10, seed=7).requires_grad_(True)
    weighted(method.terms(step(made, 0.5, student=Outputs(logits)))).backward()
    assert (logits.grad[:n].abs().sum(1) > 0).all()
    assert (logits.grad[n:] == 0).all()


def test_without_real_rows() -> None:
    """The term that has no rows is left out."""
    views = [maps(2, 1, 2, 5, seed=i) for i in (1, 2)]
    batch = drawn(maps(0, 1, 2, 5), torch.zeros(0, dtype=torch.long), *views)
    method = built()
    net = linear(torch.eye(10, dtype=torch.float64))
    batch = method.relabel(batch, net, torch.Generator())
    terms = method.terms(step(batch, student=Outputs(net(batch.inputs))))
    assert terms.keys() == {"guessed"}


def test_draws_depend_on_the_generator_alone() -> None:
    """The global streams are neither read nor moved."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(9, 0.75, torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = draw(9, 0.75, torch.Generator().manual_seed(5))
    assert first[1] == again[1]
    assert torch.equal(first[0], again[0])
    shares = [draw(2, 0.75, torch.Generator().manual_seed(i))[1] for i in range(400)]
    # The mean of max(l, 1-l) for l ~ Beta(0.75, 0.75) is 0.5 + E|l - 0.5| = 0.7783.
    assert sum(shares) / len(shares) == pytest.approx(0.7783, abs=0.03)


@pytest.mark.parametrize(
    ("rampup", "fraction", "weight"), [(1.0, 0.0, 0.0), (1.0, 0.3, 22.5), (0.25, 0.3, 75.0)]
)
def test_ramp(rampup: float, fraction: float, weight: float) -> None:
    """Linear up to lambda_u at the share ``rampup`` of the phase."""
    batch = drawn(maps(1, 1, 2, 5), torch.zeros(1, dtype=torch.long), *2 * [maps(1, 1, 2, 5)])
    batch = batch._replace(soft=maps(3, 10).softmax(1))
    given = step(batch, fraction, student=Outputs(maps(3, 10, seed=1)))
    terms = built(rampup=rampup).terms(given)
    assert terms["guessed"].weight == pytest.approx(weight)
    assert terms["labelled"].weight == 1


def test_extreme_guesses() -> None:
    """Sure, far-off and equal logits: probabilities without NaN, also for a tiny temperature."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [1e30, 1e30, -1e30]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [1 / 3] * 3, [0.5, 0.5, 0.0]])
    for temperature in (1e-3, 0.5, 1.0):
        torch.testing.assert_close(guessed_labels([logits, logits], temperature), expected)
    spread = torch.zeros(1, 1000)
    torch.testing.assert_close(guessed_labels([spread] * 2, 1e-2), torch.full((1, 1000), 1e-3))


def test_bf16() -> None:
    """Rounded logits are computed with in float32."""
    method = built()
    logits = maps(5, 10, dtype=torch.float32)
    batch = drawn(*(maps(1, 1, 2, 5).float(), torch.tensor([3])), *2 * [maps(2, 1, 2, 5).float()])
    made = method.relabel(batch, lambda x: logits[: len(x)].bfloat16(), torch.Generator())
    assert made.soft is not None
    assert made.soft.dtype == made.inputs.dtype == torch.float32
    rounded = weighted(method.terms(step(made, 0.5, student=Outputs(logits.bfloat16()))))
    assert rounded.dtype == torch.float32
    exact = weighted(method.terms(step(made, 0.5, student=Outputs(logits))))
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)


def test_in_a_run() -> None:
    """Labels are learned by its own terms alone; two views of unlabelled rows are asked for."""
    joint = join([("mixmatch", MixMatch.Settings())])
    (stretch,) = joint.stretches()
    assert stretch.objective is None
    assert not stretch.asks
    assert joint.unlabelled_views == 2
    batch = drawn(maps(2, 1, 2, 5), torch.tensor([4, 2]), *2 * [maps(3, 1, 2, 5, seed=1)])
    joint.build(shapes(taps([]), None))
    net = linear(torch.eye(10, dtype=torch.float64))
    batch = joint.relabel(batch, net, torch.Generator(), stretch)
    terms = joint([Outputs(net(batch.inputs))], batch, Progress(), stretch)
    assert terms.keys() == {"labelled", "guessed"}
    assert "guessed" not in joint.unit
    assert "labelled" in joint.unit


def test_it_stands_alone() -> None:
    """Rows that have labels of their own cannot learn another method's labels."""
    parts = [("kdplus", methods.get("kdplus").Settings()), ("mixmatch", MixMatch.Settings())]
    with pytest.raises(SettingError, match="'mixmatch' beside kdplus is not accepted"):
        join(parts).stretches()
