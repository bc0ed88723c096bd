"""Class frequencies that fall off exponentially (long-tailed data)."""

from typing import Literal

import numpy as np
from pydantic import Field

from fskd.data.samplers.base import Sampler, SamplerSettings, samplers
from fskd.data.samplers.classes import interleave
from fskd.types import Pool


class LongTailSettings(SamplerSettings):
    """How unequal the classes are, and which are frequent."""

    imbalance: float = Field(
        100.0, ge=1, description="Size of the largest class over that of the smallest."
    )
    class_order: Literal["index", "shuffled"] = Field(
        "index", description="Frequent first: classes by number, or shuffled by the split seed."
    )


@samplers.register("longtail")
class LongTail(Sampler):
    """Random within classes whose sizes fall off exponentially, at every prefix.

    n_c = n_max * imbalance**(-c/(K-1)) for the classes c = 0..K-1, the long-tailed CIFAR of Cui et
    al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019, arXiv 1901.05555,
    and Cao et al. (LDAM), NeurIPS 2019, arXiv 1906.07413. There a set is made for one n_max; here
    every prefix is such a set: its class counts are round(n_max * imbalance**(-c/(K-1))) for one
    n_max, which grows with the prefix (Webster's apportionment; where several classes would grow
    at once, a prefix may lie between).

    The proportions hold until a class has no more examples. With equal classes that is the largest
    one, and the prefix then is the published data set: 12,406 or so of CIFAR-10's 50,000 at an
    imbalance of 100. What remains comes last and is shared by the other classes in the same
    proportions. A prefix that is too small for the rarest classes lacks them: K = 10 classes at an
    imbalance of 100 need about 125 examples. With ``imbalance=1`` the order is that of
    ``stratified``.
    """

    Settings = LongTailSettings
    settings: LongTailSettings

    @property
    def balanced(self) -> bool:
        """Only without imbalance."""
        return self.settings.imbalance == 1

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        targets, settings = pool.targets.numpy(), self.settings
        order = interleave(rng.permutation(len(targets)), targets, rng)  # ties as in rounds
        present, counts = np.unique(targets, return_counts=True)
        place = np.zeros(targets.max() + 1, dtype=np.int64)
        place[present] = np.arange(len(present))
        if settings.class_order == "shuffled":
            place[present] = rng.permutation(place[present])
        # Class c has j + 1 examples from n_max = (j + 1/2) * imbalance**(c/(K-1)) on.
        growth = settings.imbalance ** (place / max(len(present) - 1, 1))
        by_class = np.argsort(targets[order], kind="stable")
        earlier = np.empty(len(order), dtype=np.int64)  # of the same class, in `order`
        earlier[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        due = ((earlier + 0.5) * growth[targets[order]]).round(9)
        return order[np.argsort(due, kind="stable")]
