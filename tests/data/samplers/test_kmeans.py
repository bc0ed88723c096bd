"""Bisecting k-means against loops, and its clusters against scikit-learn's."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster

from fskd.data.samplers.grid import to_grid
from fskd.data.samplers.kmeans import cluster_order, two_means

quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def apart(a: list[int], b: list[int]) -> int:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def middle(rows: list[list[int]]) -> list[int]:
    """The mean, rounded to the grid."""
    return [round(sum(column) / len(rows)) for column in zip(*rows, strict=True)]


def slow_halves(rows: list[list[int]], rng: np.random.Generator) -> list[bool] | None:
    """Lloyd's algorithm with two centres."""
    odds = np.array([apart(row, rows[0]) for row in rows], dtype=float)
    if not odds.any():
        return None
    centres = [rows[0], rows[rng.choice(len(rows), p=odds / odds.sum())]]
    side: list[bool] | None = None
    for _ in range(20):
        found = [apart(row, centres[1]) < apart(row, centres[0]) for row in rows]
        if found == side or len(set(found)) == 1:
            break
        side = found
        centres = [
            middle([row for row, s in zip(rows, side, strict=True) if s == high])
            for high in (False, True)
        ]
    return side


def slow(points: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Splits the list's costliest cluster until none can be split."""
    rows = [[int(v) for v in row] for row in points]

    def nearest(members: list[int]) -> int:
        centre = middle([rows[i] for i in members])
        return min(members, key=lambda i: apart(rows[i], centre))

    def cost(members: list[int]) -> int:
        centre = middle([rows[i] for i in members])
        return sum(apart(rows[i], centre) for i in members)

    everything = list(range(len(rows)))
    order = [nearest(everything)]
    clusters = [(order[0], everything)]
    while clusters:
        clusters.sort(key=lambda c: (-cost(c[1]), c[0]))
        owner, members = clusters.pop(0)
        side = slow_halves([rows[i] for i in members], rng) if len(members) > 1 else None
        if side is None:
            continue
        for high in (True, False):
            part = [i for i, s in zip(members, side, strict=True) if s == high]
            if owner not in part:
                order.append(nearest(part))
            clusters.append((owner if owner in part else order[-1], part))
    return order + [i for i in everything if i not in order]


@quick
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 3),
    spread=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
def test_as_loops(n: int, d: int, spread: int, seed: int) -> None:
    """Also with duplicates and equal distances."""
    points = np.random.default_rng(seed).integers(-spread, spread, (n, d)).astype(np.float64)
    found = cluster_order(points, np.random.default_rng(seed + 1))
    assert found.tolist() == slow(points, np.random.default_rng(seed + 1))


def test_first_is_the_most_central() -> None:
    points = np.array([[0.0], [3.0], [4.0], [5.0], [8.0]]) * 2
    assert cluster_order(points, np.random.default_rng(0))[0] == 2


def test_one_of_each_blob() -> None:
    """Well separated blobs are found at their number."""
    rng = np.random.default_rng(0)
    blobs = rng.permutation(np.repeat(np.arange(4), 25))
    centres = np.array([[0, 0, 0], [90, 0, 0], [0, 200, 0], [0, 0, 500]])
    points = to_grid(centres[blobs] + rng.normal(size=(100, 3)))
    for seed in range(10):
        order = cluster_order(points, np.random.default_rng(seed))
        assert sorted(blobs[order[:4]]) == [0, 1, 2, 3]


def test_duplicates_come_last() -> None:
    points = np.array([[1.0], [5.0], [1.0], [5.0], [9.0], [1.0]])
    order = cluster_order(points, np.random.default_rng(0))
    assert sorted(points[order[:3], 0]) == [1, 5, 9]
    assert order[3:].tolist() == sorted(order[3:])


def test_split_is_a_local_optimum_of_two_means() -> None:
    """Started from the split's centres, scikit-learn's k-means stays there."""
    points = to_grid(np.random.default_rng(2).normal(size=(200, 4)))
    side = two_means(points, np.random.default_rng(0))
    assert side is not None
    centres = np.stack([points[~side].mean(0), points[side].mean(0)])
    model = cluster.KMeans(2, init=centres, n_init=1).fit(points)
    np.testing.assert_array_equal(model.labels_.astype(bool), side)


def test_cover_is_near_that_of_k_means() -> None:
    """Distance to the nearest chosen example: better than random, near flat k-means' choice."""
    points = np.random.default_rng(5).normal(size=(600, 5)) * [9, 5, 3, 1, 1]
    order = cluster_order(to_grid(points), np.random.default_rng(0))
    for n in (8, 32):
        model = cluster.KMeans(n, n_init=3, random_state=0).fit(points)
        flat = points[model.transform(points).argmin(0)]
        random = points[np.random.default_rng(1).permutation(600)[:n]]
        own = spread(points, points[order[:n]])
        assert own < 1.25 * spread(points, flat)
        assert own < 0.95 * spread(points, random)


def spread(points: np.ndarray, chosen: np.ndarray) -> float:
    gaps = np.linalg.norm(points[:, None] - chosen, axis=2)
    return float((gaps.min(1) ** 2).mean())
