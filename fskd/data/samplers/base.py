"""The interface of a sampler: what may be looked at -> a full order of the training examples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fskd.registry import Registry
from fskd.types import DataSplits, Pool, Settings


class SamplerSettings(Settings):
    """Settings that every sampler has (none); subclasses add their own."""


class Sampler(ABC):
    """Base class of all samplers.

    Class attributes:
        Settings: The settings class.
        balanced: Whether the first k*K examples are k of each of K equally large classes.
        defaults: Run settings that suit the sampler, nested as in a run configuration.
    """

    Settings: ClassVar[type[SamplerSettings]] = SamplerSettings
    balanced: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: SamplerSettings | None = None) -> None:
        self.settings = settings or self.Settings()

    @abstractmethod
    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        """A permutation of 0..N-1, int64 (N,); every subset is a prefix of it."""

    def check(self, data: DataSplits, shots: int | None, n_val: int) -> None:  # noqa: B027
        """SettingError where the sampler cannot serve a run; by default it always can.

        Args:
            data: The data set.
            shots: Examples per class, if the subset's size is given so.
            n_val: Validation examples.
        """


samplers: Registry[type[Sampler]] = Registry("sampler", "fskd.data.samplers")
