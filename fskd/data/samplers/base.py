"""The interface of a sampler: what may be looked at -> a full order of the training examples."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from fskd.registry import Registry
from fskd.types import Pool, Settings


class SamplerSettings(Settings):
    """Settings that every sampler has (none); subclasses add their own."""


class Sampler(ABC):
    """Base class of all samplers.

    Class attributes:
        Settings: The settings class.
        balanced: Whether the first k*K examples are k of each of K equally large classes.
        reads: Teacher outputs that the pool must hold: ``embedding``, ``logits``, both or none.
    """

    Settings: ClassVar[type[SamplerSettings]] = SamplerSettings
    balanced: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: SamplerSettings | None = None) -> None:
        self.settings = settings or self.Settings()

    @abstractmethod
    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        """A permutation of 0..N-1, int64 (N,); every subset is a prefix of it."""


samplers: Registry[type[Sampler]] = Registry("sampler", "fskd.data.samplers")
