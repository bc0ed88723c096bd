"""Order without regard to classes."""

import numpy as np

from fskd.data.samplers.base import Sampler, samplers
from fskd.types import Pool


@samplers.register("uniform")
class Uniform(Sampler):
    """Random without regard to classes, the unbalanced control."""

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(pool.targets)).astype(np.int64)
