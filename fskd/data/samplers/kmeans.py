"""One example of every cluster, at every number of clusters (bisecting k-means)."""

import heapq
from typing import NamedTuple

import numpy as np

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_groups
from fskd.data.samplers.grid import squared_distances, to_grid
from fskd.types import Pool

_ITERATIONS = 20


class KMeansSettings(PerClassSettings):
    """Whether classes are clustered one by one."""


class Cluster(NamedTuple):
    """A cluster that can be split; the one of largest inertia comes first.

    Attributes:
        cost: Minus the sum of squared distances to the centre.
        representative: The chosen member; as no other cluster has it, it decides between equals.
        members: All members (n,).
    """

    cost: float
    representative: int
    members: np.ndarray


def cluster_order(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order whose first n points are representatives of n clusters, for every n.

    The first is the point nearest to the mean. Then the cluster of largest inertia is split in
    two by 2-means, again and again: the part with its representative keeps it, and the point
    nearest to the other part's centre is the next in the order. O(n log n * D) for even splits.

    Args:
        points: Grid points (n, D), see ``to_grid``.
        rng: Draws the starting centres of the splits.

    Returns:
        Order of 0..n-1, (n,). Of points that are the same, one is chosen; the others come last.
    """
    first, cost = _centre(points)
    order, heap = [first], [Cluster(cost, first, np.arange(len(points)))]
    while heap:
        cluster = heapq.heappop(heap)
        inside = points[cluster.members]
        second = two_means(inside, rng)
        if second is None:
            continue
        for side in (second, ~second):
            members = cluster.members[side]
            nearest, cost = _centre(inside[side])
            if cluster.representative in members:
                representative = cluster.representative
            else:
                representative = int(members[nearest])
                order.append(representative)
            if len(members) > 1:
                heapq.heappush(heap, Cluster(cost, representative, members))
    rest = np.setdiff1d(np.arange(len(points)), order)
    return np.concatenate([np.array(order), rest])


def two_means(points: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Splits grid points (n, D) in two by Lloyd's algorithm from a k-means++ start.

    Centres are rounded to the grid, so every comparison is exact.

    Returns:
        Whether each point belongs to the second centre, (n,), both sides occupied; None if all
        points are the same.
    """
    apart = squared_distances(points, points[:1])[:, 0]
    if not apart.any():
        return None
    total, side = points.sum(0), None
    low, high = points[0], points[rng.choice(len(points), p=apart / apart.sum())]
    for _ in range(_ITERATIONS):
        # Nearer to `high`: |x - high|^2 < |x - low|^2.
        found = 2 * (points @ (high - low)) > high @ high - low @ low
        n_high = np.count_nonzero(found)
        if n_high in (0, len(points)) or (side is not None and np.array_equal(found, side)):
            break
        side, in_high = found, found.astype(np.float64) @ points
        high, low = np.rint(in_high / n_high), np.rint((total - in_high) / (len(points) - n_high))
    return side


def _centre(points: np.ndarray) -> tuple[int, float]:
    """The point nearest to the centre of grid points (n, D), and minus their inertia."""
    apart = squared_distances(points, np.rint(points.mean(0))[None])[:, 0]
    return int(apart.argmin()), -float(apart.sum())


@samplers.register("kmeans")
class KMeans(Sampler):
    """One example of each of n clusters of the teacher's embeddings, for every n.

    Choosing the examples nearest to the centres of n-means is common in active learning, but such
    choices do not nest: those for n and for n + 1 share little. Bisecting k-means (Steinbach,
    Karypis and Kumar, *A Comparison of Document Clustering Techniques*, KDD workshop 2000) does:
    every split adds one cluster and one example. The price: a split is never revised, so n
    clusters are somewhat wider than those of n-means alone, and a cluster that was split keeps
    the representative of the whole, which need not be the nearest to its own centre. By default
    each class is clustered by itself.
    """

    Settings = KMeansSettings
    settings: KMeansSettings
    reads = frozenset({"embedding"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        features = teacher_output(pool, "embedding", "kmeans")
        return rank_groups(
            pool.targets.numpy(),
            self.settings.per_class,
            rng,
            lambda group: cluster_order(to_grid(features[group]), rng),
        )
