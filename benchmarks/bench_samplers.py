"""Full orders of 50,000 examples with embeddings of 512 and 10 classes, by every sampler.

    python -m pytest benchmarks/bench_samplers.py --benchmark-columns=median,rounds

Seconds on two cores of a shared machine (torch 2.15, NumPy 2.4; one run each): wall time with two
threads while other jobs kept about five threads busy, and processor time with one thread.

| sampler                          | wall | processor |
|----------------------------------|------|-----------|
| uniform, stratified, longtail    | < 0.1 |          |
| margin, el2n, entropy            | 0.2  |           |
| herding                          | 8.9  |           |
| kcenter                          | 23   | 6.5       |
| kmeans                           | 29   | 12        |
| kcenter, per_class=False (10,000 greedy) | 28 | 20  |
| kmeans, per_class=False          | 32   |           |
| herding, per_class=False, 2,000 greedy (default 1,000) | 60 | 40 |

The blocks of ``kcenter`` are measured against the textbook's loop (`one_by_one`); both choose the
same examples. 1,000 choices from 20,000: 2.9 s against 24 s (8.2 times) under the same load.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fskd.data.samplers.base import samplers
from fskd.data.samplers.grid import to_grid
from fskd.data.samplers.kcenter import farthest_first
from fskd.types import Pool

N, D, K = 50_000, 512, 10
WAYS = [(name, {}) for name in samplers.names()] + [
    (name, {"per_class": False}) for name in ("kcenter", "herding", "kmeans")
]


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Classes around means, with 64 directions of falling variance, as ReLU leaves them."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(N) % K
    inner = torch.randn(N, 64, generator=rng) * torch.logspace(0, -1, 64)
    embeddings = torch.randn(K, D, generator=rng)[targets]
    embeddings += 0.3 * inner @ torch.randn(64, D, generator=rng)
    embeddings += 0.2 * torch.randn(N, D, generator=rng)
    return Pool(targets, embeddings.relu(), 4 * torch.randn(N, K, generator=rng))


@pytest.mark.parametrize(("name", "given"), WAYS)
def test_full_order(
    benchmark: BenchmarkFixture, pool: Pool, name: str, given: dict[str, bool]
) -> None:
    benchmark.group = "full orders"
    sampler = samplers.get(name)(samplers.get(name).Settings.model_validate(given))

    def rank() -> np.ndarray:
        return sampler.rank(pool, np.random.default_rng(0))

    order = benchmark.pedantic(rank, rounds=1, iterations=1)
    assert len(np.unique(order)) == N


def one_by_one(points: np.ndarray, n_greedy: int) -> np.ndarray:
    """One matrix-vector product for every choice."""
    order, gap, squares = [0], np.full(len(points), np.inf), (points**2).sum(1)
    while len(order) < n_greedy:
        newest = order[-1]
        gap = np.minimum(gap, squares + squares[newest] - 2 * (points @ points[newest]))
        order.append(int(gap.argmax()))
    return np.array(order)


@pytest.mark.parametrize("way", [farthest_first, one_by_one])
def test_kcenter_in_blocks(
    benchmark: BenchmarkFixture, pool: Pool, way: Callable[[np.ndarray, int], np.ndarray]
) -> None:
    benchmark.group = "1,000 choices of k-center from 20,000"
    points = to_grid(pool.embeddings[:20000].numpy())
    order = benchmark.pedantic(lambda: way(points, 1000), rounds=1, iterations=1)
    np.testing.assert_array_equal(order[:1000], one_by_one(points, 1000))
