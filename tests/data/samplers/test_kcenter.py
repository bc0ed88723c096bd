"""Farthest-first order against the textbook's loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.samplers import kcenter
from fskd.data.samplers.grid import to_grid
from fskd.data.samplers.kcenter import KCenter, KCenterSettings, farthest_first
from fskd.seeding import numpy_generator
from fskd.types import Pool

quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def slow(points: np.ndarray, n_greedy: int) -> list[int]:
    """Greedy k-center in Python integers, every distance anew."""
    rows = [[int(v) for v in row] for row in points]

    def gap(i: int, chosen: list[int]) -> int:
        return min(sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) for j in chosen)

    chosen = [0]
    while len(chosen) < min(n_greedy, len(rows)):
        rest = [i for i in range(len(rows)) if i not in chosen]
        gaps = [gap(i, chosen) for i in rest]
        chosen.append(rest[gaps.index(max(gaps))])
    rest = [i for i in range(len(rows)) if i not in chosen]
    return chosen + sorted(rest, key=lambda i: -gap(i, chosen))


@pytest.mark.parametrize("candidates", [1, 3, 256])
@quick
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 3),
    spread=st.integers(1, 40),
    n_greedy=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_as_loops(candidates: int, n: int, d: int, spread: int, n_greedy: int, seed: int) -> None:
    """Also with many equal distances and duplicates, and in blocks of any size."""
    points = np.random.default_rng(seed).integers(-spread, spread, (n, d)).astype(np.float64)
    kept, kcenter._CANDIDATES = kcenter._CANDIDATES, candidates
    try:
        assert farthest_first(points, n_greedy).tolist() == slow(points, n_greedy)
    finally:
        kcenter._CANDIDATES = kept


def test_as_loops_in_many_dimensions() -> None:
    """Real-valued features, several blocks."""
    points = to_grid(np.random.default_rng(0).normal(size=(90, 20)))
    kept, kcenter._CANDIDATES = kcenter._CANDIDATES, 8
    try:
        assert farthest_first(points, 90).tolist() == slow(points, 90)
    finally:
        kcenter._CANDIDATES = kept


def test_radius_within_twice_the_best() -> None:
    """Gonzalez's guarantee, on a line, where the smallest radius is known by search."""
    places = np.sort(np.random.default_rng(1).integers(0, 10_000, 60)).astype(float)
    for k in range(1, 12):
        chosen = places[farthest_first(places[:, None], k)[:k]]
        radius = np.abs(places[:, None] - chosen).min(1).max()
        assert radius <= 2 * best_radius(places, k)


def best_radius(places: np.ndarray, k: int) -> float:
    """Least r such that k centres among sorted places reach all within r."""
    for r in np.unique(np.abs(places[:, None] - places)):
        needed, i = 0, 0
        while i < len(places):
            centre = places[places <= places[i] + r][-1]
            i = int(np.searchsorted(places, centre + r, side="right"))
            needed += 1
        if needed <= k:
            return float(r)
    raise AssertionError


def test_first_is_random_and_clusters_are_found() -> None:
    """One of each of four far blobs, whichever comes first."""
    rng = np.random.default_rng(0)
    blobs = np.arange(40) % 4
    features = np.eye(4)[blobs] * 100 + rng.normal(size=(40, 4))
    pool = Pool(torch.zeros(40, dtype=torch.int64), torch.from_numpy(features))
    sampler = KCenter(KCenterSettings(per_class=False))
    orders = [sampler.rank(pool, numpy_generator(seed)) for seed in range(30)]
    assert all(sorted(blobs[order[:4]]) == [0, 1, 2, 3] for order in orders)
    assert len({int(order[0]) for order in orders}) > 10
