"""Examples whose running mean stays near the mean of all (herding)."""

import numpy as np
from pydantic import Field

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_groups
from fskd.data.samplers.grid import to_grid
from fskd.types import Pool

_MATRIX = 2**26  # entries, 512 MiB: the products of all pairs of 8,192 examples


class HerdingSettings(PerClassSettings):
    """Scale of the embeddings, and how far the greedy choice goes."""

    normalize: bool = Field(True, description="Embeddings of length one, as in iCaRL.")
    greedy: int = Field(
        1_000, ge=1, description="Chosen greedily of a group of over 8,192 (smaller: all)."
    )


def herd(points: np.ndarray, n_greedy: int) -> np.ndarray:
    """Greedy choice of points whose mean is nearest to the mean of all, at every size.

    The k-th point minimises norm(m - (x + s)/k), where m is the mean of all points and s the sum
    of those chosen before; that is, it maximises 2*(k*x@m - x@s) - x@x.

    Args:
        points: Grid points (n, D), see ``to_grid``.
        n_greedy: How many are chosen so where the products of all pairs would not fit into
            ``_MATRIX``, at least 1; the others follow as they would rank for the place after the
            last of these.

    Returns:
        Order of 0..n-1, (n,). Of equally good points the one that lies first.
    """
    n, products = len(points), None
    if n * n <= _MATRIX:
        n_greedy, products = n, points @ points.T
    toward = np.einsum("nd,d->n", points, points.mean(0))  # x@m; einsum uses one thread
    gain = 2 * toward - np.einsum("nd,nd->n", points, points)
    chosen = []
    for _ in range(min(n_greedy, n)):
        best = int(gain.argmax())
        chosen.append(best)
        gain += 2 * (toward - (points @ points[best] if products is None else products[best]))
        gain[best] = -np.inf
    rest = np.argsort(-gain, kind="stable")[: n - len(chosen)]
    return np.concatenate([np.array(chosen, dtype=np.int64), rest])


@samplers.register("herding")
class Herding(Sampler):
    """Keeps the mean of the chosen embeddings near the mean of all.

    Welling, *Herding Dynamical Weights to Learn*, ICML 2009, in the form of Rebuffi et al., *iCaRL:
    Incremental Classifier and Representation Learning*, CVPR 2017, arXiv 1611.07725, algorithm 4:
    without repetition, on embeddings of length one (there the two papers' rules agree), per class.
    iCaRL's features change as it learns; here they are the teacher's. The split seed decides ties
    and the order of the classes only: k-shot subsets are the same for every seed.

    Example:
        >>> herd(np.array([[0.0], [4.0], [6.0], [10.0]]), 4)
        array([1, 2, 0, 3])
    """

    Settings = HerdingSettings
    settings: HerdingSettings
    reads = frozenset({"embedding"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        features, settings = teacher_output(pool, "embedding", "herding"), self.settings

        def order(group: np.ndarray) -> np.ndarray:
            points = features[group].astype(np.float64)
            if settings.normalize:
                lengths = np.linalg.norm(points, axis=1, keepdims=True)
                points /= np.where(lengths > 0, lengths, 1)
            return herd(to_grid(points), settings.greedy)

        return rank_groups(pool.targets.numpy(), settings.per_class, rng, order)
