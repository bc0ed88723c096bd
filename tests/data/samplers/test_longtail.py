"""Class counts of ``longtail`` against the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.samplers.longtail import LongTail, LongTailSettings
from fskd.data.samplers.stratified import Stratified
from fskd.seeding import numpy_generator
from fskd.types import Pool

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def order(targets: np.ndarray, seed: int = 0, **given: object) -> np.ndarray:
    sampler = LongTail(LongTailSettings.model_validate(given))
    return sampler.rank(Pool(torch.from_numpy(targets)), numpy_generator(seed, "split"))


def published(largest: float, n_classes: int, imbalance: float) -> list[int]:
    """round(n_max * imbalance**(-c/(K-1))), halves up."""
    return [
        int(largest * imbalance ** (-c / (n_classes - 1)) + 0.5 + 1e-9) for c in range(n_classes)
    ]


@quick
@given(
    n_classes=st.integers(2, 8),
    each=st.integers(1, 40),
    imbalance=st.floats(1, 300),
    seed=st.integers(0, 2**32),
)
def test_every_prefix(n_classes: int, each: int, imbalance: float, seed: int) -> None:
    """Counts are the published ones of some n_max, or lie between two neighbouring sets."""
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(n_classes), each))
    found = targets[order(targets, seed, imbalance=imbalance)]
    growth = [imbalance ** (c / (n_classes - 1)) for c in range(n_classes)]
    steps = sorted({(j + 0.5) * g for g in growth for j in range(each)})
    for below, above in zip([0.0, *steps], steps, strict=False):
        less, more = (published(n_max, n_classes, imbalance) for n_max in (below, above))
        if max(more) > each:
            break
        for n in range(sum(less), sum(more) + 1):
            counts = np.bincount(found[:n], minlength=n_classes)
            assert (counts >= less).all()
            assert (counts <= more).all()


def test_least_squares() -> None:
    """No other class counts of the same size are nearer to the proportions (chi-square)."""
    targets = np.repeat(np.arange(3), 30)
    shares = np.array([1, 1 / 4, 1 / 16]) / (1 + 1 / 4 + 1 / 16)
    found = targets[order(targets, imbalance=16)]
    for n in range(1, 35):
        counts = np.bincount(found[:n], minlength=3)

        def off(a: int, b: int, n: int = n) -> float:
            return float(((np.array([a, b, n - a - b]) - n * shares) ** 2 / shares).sum())

        best = min(off(a, b) for a in range(n + 1) for b in range(n + 1 - a))
        assert off(counts[0], counts[1]) == pytest.approx(best)


def test_the_published_set_is_a_prefix() -> None:
    """CIFAR-10-LT at 100: 5,000 of the first class, 50 of the last, then the rest."""
    targets = np.arange(50_000) % 10
    found = targets[order(targets)]
    size = int(np.flatnonzero(found == 0)[-1]) + 1
    counts = np.bincount(found[:size])
    expected = [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]  # LDAM's, rounded down
    assert counts[0] == 5000
    assert (np.abs(counts - expected) <= 1).all()
    assert 12_400 < size < 12_420
    first_of_last = int(np.flatnonzero(found == 9)[0])
    assert 115 < first_of_last < 135


def test_proportions_go_on_without_the_exhausted() -> None:
    """After the largest class the others keep their ratios."""
    targets = np.repeat(np.arange(3), 200)
    found = targets[order(targets, imbalance=16)]
    after = found[np.flatnonzero(found == 0)[-1] + 1 :]
    counts = np.bincount(after[:100], minlength=3)
    assert counts.tolist() == [0, 80, 20]


def test_no_imbalance_is_stratified() -> None:
    """The very same order, and only then is it balanced."""
    targets = np.random.default_rng(0).integers(0, 7, 90)
    expected = Stratified().rank(Pool(torch.from_numpy(targets)), numpy_generator(4, "split"))
    np.testing.assert_array_equal(order(targets, 4, imbalance=1), expected)
    assert LongTail(LongTailSettings(imbalance=1)).balanced
    assert not LongTail().balanced


def test_class_order() -> None:
    """By number, or another one for every seed; gaps in the numbers do not count."""
    targets = np.repeat([0, 3, 4], 64)
    heads = {int(np.bincount(targets[order(targets, s)[:64]]).argmax()) for s in range(20)}
    assert heads == {0}
    heads = {
        int(np.bincount(targets[order(targets, s, class_order="shuffled")[:64]]).argmax())
        for s in range(20)
    }
    assert heads == {0, 3, 4}
    counts = np.bincount(targets[order(targets, imbalance=16)[:21]], minlength=5)
    assert counts.tolist() == [16, 0, 0, 4, 1]


def test_one_class() -> None:
    assert sorted(order(np.zeros(5, dtype=np.int64)).tolist()) == [0, 1, 2, 3, 4]
