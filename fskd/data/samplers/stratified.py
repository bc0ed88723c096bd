"""Class-balanced order."""

import numpy as np

from fskd.data.samplers.base import Sampler, samplers
from fskd.data.samplers.classes import interleave
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
        return interleave(rng.permutation(len(targets)), targets, rng)
