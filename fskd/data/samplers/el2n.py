"""By the norm of the teacher's error (EL2N)."""

from typing import Literal

import numpy as np
from pydantic import Field

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_by_score
from fskd.data.samplers.probabilities import softmax
from fskd.types import Pool


class EL2NSettings(PerClassSettings):
    """Which end comes first."""

    first: Literal["hardest", "easiest"] = Field(
        "hardest", description="Large errors first, as in the paper, or small ones."
    )


def el2n(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """norm(softmax(logits) - onehot(targets)), float64 (N,), in [0, sqrt(2)].

    Args:
        logits: (N, K).
        targets: Classes (N,), in 0..K-1.

    Example:
        >>> el2n(np.zeros((1, 2)), np.array([0])).round(4)
        array([0.7071])
    """
    errors, rows = softmax(logits), np.arange(len(targets))
    errors[rows, targets] = 0
    # Not p - 1, which is 0 for a teacher that is sure.
    errors[rows, targets] = -errors.sum(1)
    return np.sqrt((errors**2).sum(1))


@samplers.register("el2n")
class EL2N(Sampler):
    """Examples on which the teacher errs most first (or least).

    Paul, Ganguli and Dziugaite, *Deep Learning on a Data Diet: Finding Important Examples Early in
    Training*, NeurIPS 2021, arXiv 2107.07075, rank all examples by the score's mean over ten
    networks early in training. Here it is the score of the one trained teacher, whose errors on
    its own training data are smaller, and by default classes are ranked one by one. The hardest
    first suits pruning a large set by half; with few examples the easiest serve better (Sorscher
    et al., NeurIPS 2022, arXiv 2206.14486). The split seed decides ties and the order of the
    classes only: k-shot subsets are the same for every seed.
    """

    Settings = EL2NSettings
    settings: EL2NSettings
    reads = frozenset({"logits"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        targets = pool.targets.numpy()
        score = el2n(teacher_output(pool, "logits", "el2n"), targets)
        if self.settings.first == "easiest":
            score = -score
        return rank_by_score(score, targets, self.settings.per_class, rng)
