"""By the gap between the teacher's two likeliest classes."""

import numpy as np

from fskd.data.samplers.base import Sampler, samplers, teacher_output
from fskd.data.samplers.classes import PerClassSettings, rank_by_score
from fskd.data.samplers.probabilities import softmax
from fskd.types import Pool


class MarginSettings(PerClassSettings):
    """Whether classes are ranked one by one."""


def doubt(logits: np.ndarray) -> np.ndarray:
    """One minus the margin, 1 - (p_1 - p_2) for sorted probabilities; float64 (N,), in [0, 1].

    Summed from the small probabilities, so that it tells apart what a sure teacher sees.

    Args:
        logits: (N, K).

    Example:
        >>> doubt(np.log([[0.5, 0.3, 0.2]])).round(6)
        array([0.8])
    """
    probs = np.sort(softmax(logits), axis=1)
    return probs[:, :-1].sum(1) + (probs[:, -2] if probs.shape[1] > 1 else 0)


@samplers.register("margin")
class Margin(Sampler):
    """Examples between whose two likeliest classes the teacher hesitates first.

    Margin sampling of active learning (Scheffer, Decomain and Wrobel, *Active Hidden Markov Models
    for Information Extraction*, IDA 2001), chosen at once from one trained network. It needs no
    labels except, by default, to rank classes one by one. The split seed decides ties and the
    order of the classes only: k-shot subsets are the same for every seed.
    """

    Settings = MarginSettings
    settings: MarginSettings
    reads = frozenset({"logits"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        score = doubt(teacher_output(pool, "logits", "margin"))
        return rank_by_score(score, pool.targets.numpy(), self.settings.per_class, rng)
