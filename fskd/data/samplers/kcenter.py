"""Farthest-first order of the teacher's embeddings (greedy k-center)."""

import numpy as np
from pydantic import Field

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_groups
from fskd.data.samplers.grid import squared_distances, to_grid
from fskd.types import Pool

_CANDIDATES = 256
_ROWS = 4096


class KCenterSettings(PerClassSettings):
    """How far the greedy choice goes."""

    greedy: int = Field(
        10_000, ge=1, description="Chosen greedily of each class (or of all); time grows with it."
    )


def farthest_first(points: np.ndarray, n_greedy: int) -> np.ndarray:
    """Greedy k-center: the first point, then always the one farthest from all chosen before.

    The choice is the textbook's, of O(n_greedy * n * D) operations, but made in blocks, so that
    matrix products do the work. Distances to the chosen set only fall. So among the points that
    are farthest now, the next choices are known from the distances between these alone until one
    of them is nearer than the farthest point outside; only then is everybody's distance brought
    up to date, for all new choices at once.

    Args:
        points: Grid points (n, D), see ``to_grid``.
        n_greedy: How many are chosen so, at least 1; the others follow by their distance to these,
            farthest first.

    Returns:
        Order of 0..n-1, (n,). Of equally distant points the one that lies first.
    """
    chosen = [0]
    gap = squared_distances(points, points[:1])[:, 0]  # to the nearest chosen point
    gap[0] = -1  # those chosen come after duplicates of them, whose gap is 0
    while len(chosen) < min(n_greedy, len(points)) and gap.max() > 0:
        new = _next_choices(points, gap, n_greedy - len(chosen))
        chosen += new.tolist()
        gap[new] = -1
        open_rows = np.flatnonzero(gap > 0)
        for start in range(0, len(open_rows), _ROWS):
            rows = open_rows[start : start + _ROWS]
            nearest = squared_distances(points[rows], points[new]).min(1)
            gap[rows] = np.minimum(gap[rows], nearest)
    ranked = np.argsort(-gap, kind="stable")
    return np.concatenate([np.array(chosen), ranked[: len(points) - len(chosen)]])


def _next_choices(points: np.ndarray, gap: np.ndarray, most: int) -> np.ndarray:
    """The next greedy choices, as many as the farthest points alone decide; at least one."""
    ranked = np.argsort(-gap, kind="stable")
    rest = ranked[_CANDIDATES] if len(ranked) > _CANDIDATES else len(gap)
    limit = gap[rest] if rest < len(gap) else 0.0
    candidates = np.sort(ranked[:_CANDIDATES])  # so that argmax finds the first of equals
    own, mutual = gap[candidates], squared_distances(points[candidates], points[candidates])
    new: list[int] = []
    while len(new) < most:
        best = int(own.argmax())
        if own[best] < limit or (own[best] == limit and candidates[best] > rest) or own[best] <= 0:
            break
        new.append(int(candidates[best]))
        own = np.minimum(own, mutual[best])
        own[best] = -1
    return np.array(new)


@samplers.register("kcenter")
class KCenter(Sampler):
    """Covers the teacher's embeddings: always the example farthest from those chosen.

    Sener and Savarese, *Active Learning for Convolutional Neural Networks: A Core-Set Approach*,
    ICLR 2018, arXiv 1708.00489: the greedy algorithm, which comes within a factor of two of the
    smallest covering radius at every size, and whose choices nest. Without the paper's refinement
    by integer programming, whose choices do not. The first example is random. By default each
    class is covered by itself; the paper has no labels to do so, ``per_class=False`` is its form.

    Example:
        >>> farthest_first(np.array([[0.0], [1.0], [9.0], [5.0]]), 4)
        array([0, 2, 3, 1])
    """

    Settings = KCenterSettings
    settings: KCenterSettings
    reads = frozenset({"embedding"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        features, settings = teacher_output(pool, "embedding", "kcenter"), self.settings
        return rank_groups(
            pool.targets.numpy(),
            settings.per_class,
            rng,
            lambda group: farthest_first(to_grid(features[group]), settings.greedy),
        )
