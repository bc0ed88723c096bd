"""Herding against iCaRL's algorithm written as loops."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.samplers import herding
from fskd.data.samplers.herding import Herding, HerdingSettings, herd
from fskd.seeding import numpy_generator
from fskd.types import Pool

quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def slow(points: np.ndarray) -> list[list[int]]:
    """iCaRL's algorithm 4 in fractions: at each place, the points by their distance."""
    rows = [[Fraction(v) for v in row] for row in points.tolist()]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    total = [Fraction(0)] * len(mean)
    found: list[int] = []
    places = []
    for k in range(1, len(rows) + 1):

        def off(i: int, k: int = k, total: list[Fraction] = total) -> Fraction:
            together = ((s + v) / k for s, v in zip(total, rows[i], strict=True))
            return sum((m - t) ** 2 for m, t in zip(mean, together, strict=True))  # type: ignore

        rest = [i for i in range(len(rows)) if i not in found]
        places.append(sorted(rest, key=off))
        found.append(places[-1][0])
        total = [s + v for s, v in zip(total, rows[found[-1]], strict=True)]
    return places


@pytest.mark.parametrize("kept", [True, False])
@quick
@given(n=st.integers(1, 16), d=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_as_loops(kept: bool, n: int, d: int, seed: int) -> None:
    """With the products of all pairs kept, or made as they are needed."""
    n_points = 2 ** (n % 5)  # the mean of so many integers is exact, and so are ties
    points = np.random.default_rng(seed).integers(-30, 30, (n_points, d)).astype(np.float64)
    expected = [place[0] for place in slow(points)]
    size, herding._MATRIX = herding._MATRIX, n_points**2 if kept else 0
    try:
        assert herd(points, 100).tolist() == expected
    finally:
        herding._MATRIX = size


@pytest.mark.parametrize("n_greedy", [1, 4, 11])
def test_rest(monkeypatch: pytest.MonkeyPatch, n_greedy: int) -> None:
    """After the greedy part come the candidates for its next place, best first."""
    points = np.random.default_rng(3).integers(-999, 999, (12, 3)).astype(np.float64)
    places = slow(points)
    assert herd(points, n_greedy).tolist() == [place[0] for place in places]
    monkeypatch.setattr(herding, "_MATRIX", 0)
    expected = [place[0] for place in places[:n_greedy]] + places[n_greedy]
    assert herd(points, n_greedy).tolist() == expected


def test_mean_is_nearer_than_at_random() -> None:
    """The error of the mean falls as 1/k, not as 1/sqrt(k)."""
    points = np.rint(np.random.default_rng(0).normal(size=(400, 8)) * 1000)
    order, mean = herd(points, 400), points.mean(0)
    off = [np.linalg.norm(points[order[:k]].mean(0) - mean) for k in (4, 40)]
    assert off[1] < off[0] / 5
    assert off[1] < np.linalg.norm(points[:40].mean(0) - mean) / 5


def test_normalize() -> None:
    """Lengths do not matter with it, and do without; a zero embedding is no error."""
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.arange(1, 31)[:, None]
    scaled[7] = features[7] = 0
    targets = torch.arange(30) % 3

    def order(values: torch.Tensor, normalize: bool) -> list[int]:
        sampler = Herding(HerdingSettings(normalize=normalize))
        return sampler.rank(Pool(targets, values), numpy_generator(0)).tolist()

    assert order(features, True) == order(scaled, True)
    assert order(features, False) != order(scaled, False)
