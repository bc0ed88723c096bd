"""ReMixMatch: aligned guesses and losses number by number, and guesses that follow the classes."""

import math

import pytest
import torch
from recorded import maps, real_batch, shapes, step
from torch import Tensor

from fskd.methods.remixmatch import ReMixMatch, aligned_labels, draw, mixed, turned
from fskd.train.batches import with_rows
from fskd.types import Batch, Outputs, TapShapes

NET = TapShapes((10,), (4,), (), (), (), ())


def built(**settings: float) -> ReMixMatch:
    """The method for ten classes, in float64."""
    torch.manual_seed(0)
    method = ReMixMatch(ReMixMatch.Settings(**settings))
    method.shapes = shapes(NET, None)
    method.build(method.shapes)
    return method.double()


def drawn(n_real: int = 3, n_images: int = 5, n_views: int = 4) -> Batch:
    """Real rows, then views of unlabelled ones."""
    batch = real_batch(torch.arange(n_real) % 2)._replace(inputs=maps(n_real, 1, 4, 4))
    views = [maps(n_images, 1, 4, 4, seed=i + 1) for i in range(n_views)]
    return with_rows(batch, "unlabelled", torch.cat(views))


def linear(inputs: Tensor) -> Tensor:
    """A network that is one linear map."""
    return inputs.flatten(1) @ maps(16, 10, seed=9)


def slow_guess(anchor: Tensor, truth: list[float], seen: list[float], t: float) -> list[float]:
    """The guess of one row."""
    powers = [math.exp(z) for z in anchor.tolist()]
    p = [one / sum(powers) for one in powers]
    ratio = [(a + 1e-6) / (b + 1e-6) for a, b in zip(truth, seen, strict=True)]
    aligned = [a * r for a, r in zip(p, ratio, strict=True)]
    sharp = [(a / sum(aligned)) ** (1 / t) for a in aligned]
    return [a / sum(sharp) for a in sharp]


def slow_entropy(logits: Tensor, probs: Tensor) -> float:
    """Mean over rows of -sum_c q_c log p_c."""
    total = 0.0
    for row, q in zip(logits.tolist(), probs.tolist(), strict=True):
        norm = math.log(sum(math.exp(z) for z in row))
        total -= sum(a * (z - norm) for a, z in zip(q, row, strict=True))
    return total / len(logits)


def test_slow_twin() -> None:
    """Guesses, mixed labels and all four terms; the memory moves after the guess was made."""
    method, batch = built(n_strong=2), drawn()
    method.seen[-1] = maps(10).softmax(0)
    seen = method.seen.mean(0).tolist()
    rng = torch.Generator().manual_seed(3)
    plain = method.views(batch, rng)["rotated"]
    made = method.relabel(batch, linear, rng)
    anchors = batch.inputs[3:8]
    truth = [0.5, 0.5, *[0.0] * 8]
    guess = torch.tensor([slow_guess(z, truth, seen, 0.5) for z in linear(anchors)]).double()
    labels = torch.nn.functional.one_hot(batch.targets, 10).double()
    order, share = draw(18, 0.75, torch.Generator().manual_seed(3))
    soft = torch.cat([mixed(torch.cat([labels, guess, guess, guess]), order, share), guess])
    assert made.soft is not None
    torch.testing.assert_close(made.soft, soft, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(made.inputs[:18], mixed(batch.inputs[:18], order, share))
    assert torch.equal(made.inputs[18:], batch.inputs[18:])
    torch.testing.assert_close(method.seen[-1], linear(anchors).softmax(1).mean(0))
    for i in range(5):
        assert torch.equal(plain[i], torch.rot90(batch.inputs[18 + i], i % 4, (1, 2)))
    logits, embedding = maps(28, 10, seed=5), maps(28, 4, seed=6)
    made = with_rows(made, "rotated", plain)
    found = method.terms(step(made, student=Outputs(logits, embedding)))
    turns = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3, 0]), 4)
    expected = {
        "labelled": (slow_entropy(logits[:3], made.soft[:3]), 1.0),
        "guessed": (slow_entropy(logits[3:18], made.soft[3:18]), 1.5),
        "anchored": (slow_entropy(logits[18:23], made.soft[18:]), 0.5),
        "rotation": (slow_entropy(method.head(embedding[23:]), turns), 0.5),
    }
    assert found.keys() == expected.keys()
    for name, (value, weight) in expected.items():
        assert found[name].value.item() == pytest.approx(value, rel=1e-10), name
        assert found[name].weight == weight


def test_guesses_come_to_the_shares_of_the_classes() -> None:
    """A student that prefers a class is held back: mean guesses approach the labels' shares."""
    logits = maps(4000, 2)
    logits[:, 0] += 1.5
    truth, seen = torch.tensor([0.3, 0.7]).double(), logits.softmax(1).mean(0)
    before = (logits.softmax(1).mean(0) - truth).abs().sum()
    after = (aligned_labels(logits, truth, seen, 1.0).mean(0) - truth).abs().sum()
    assert after < 0.3 * before
    surer = aligned_labels(logits, truth, seen, 0.5).max(1).values
    assert (surer >= aligned_labels(logits, truth, seen, 1.0).max(1).values - 1e-12).all()


def test_extreme_guesses() -> None:
    """Far-off logits and classes that never come give probabilities without NaN."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    none = torch.tensor([0.0, 0.5, 0.5])
    for truth, seen in ((none, none.flip(0)), (none.flip(0), none)):
        found = aligned_labels(logits, truth, seen, 0.1)
        torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_without_real_rows() -> None:
    """The term that has no rows is left out."""
    method, rng = built(n_strong=1), torch.Generator()
    batch = drawn(0, 2, 3)
    made = with_rows(batch, "rotated", method.views(batch, rng)["rotated"])
    made = method.relabel(made, linear, rng)
    found = method.terms(step(made, student=Outputs(maps(8, 10), maps(8, 4))))
    assert found.keys() == {"guessed", "anchored", "rotation"}
    assert turned(maps(0, 1, 4, 4)).shape == (0, 1, 4, 4)
