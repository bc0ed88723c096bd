"""Class-balanced order."""

import numpy as np

from fskd.data.samplers.base import Sampler, samplers
from fskd.types import Pool


@samplers.register("stratified")
class Stratified(Sampler):
    """Random and class-balanced: class counts differ by at most one at every prefix.

    Rounds of one example per class, classes in a new random order in every round, so the first k*K
    examples are k per class. A class that runs out leaves the later rounds to the others.
    """

    balanced = True

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        targets = pool.targets.numpy()
        shuffled = rng.permutation(len(targets))
        by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
        counts = np.bincount(targets)
        starts = np.cumsum(counts) - counts
        rounds = np.arange(len(targets)) - np.repeat(starts, counts)
        place = rng.permuted(np.tile(np.arange(len(counts)), (counts.max(), 1)), axis=1)
        turn = rounds * len(counts) + place[rounds, targets[by_class]]
        return by_class[np.argsort(turn, kind="stable")].astype(np.int64)
