"""By the entropy of the teacher's prediction."""

import numpy as np

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_by_score
from fskd.data.samplers.probabilities import softmax
from fskd.types import Pool


class EntropySettings(PerClassSettings):
    """Whether classes are ranked one by one."""


def entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy of softmax(logits) in nats, float64 (N,), in [0, log K].

    Args:
        logits: (N, K).

    Example:
        >>> entropy(np.zeros((1, 4))).round(4)
        array([1.3863])
    """
    probs = np.sort(softmax(logits), axis=1)
    rest, top = probs[:, :-1], probs[:, :-1].sum(1)
    logs = np.log(rest, out=np.zeros_like(rest), where=rest > 0)  # 0 log 0 = 0
    # The likeliest class has p = 1 - top; log1p keeps its share for a teacher that is sure.
    return -(rest * logs).sum(1) - probs[:, -1] * np.log1p(-top)


@samplers.register("entropy")
class Entropy(Sampler):
    """Examples of which the teacher is least sure first, by the entropy of its prediction.

    Uncertainty sampling of active learning (Settles, *Active Learning Literature Survey*, 2009),
    chosen at once from one trained network. It needs no labels except, by default, to rank classes
    one by one. The split seed decides ties and the order of the classes only: k-shot subsets are
    the same for every seed.
    """

    Settings = EntropySettings
    settings: EntropySettings
    reads = frozenset({"logits"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        score = entropy(teacher_output(pool, "logits", "entropy"))
        return rank_by_score(score, pool.targets.numpy(), self.settings.per_class, rng)
