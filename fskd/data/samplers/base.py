"""The interface of a sampler: what may be looked at -> a full order of the training examples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fskd.errors import DataError, FskdError
from fskd.registry import Registry
from fskd.types import DataSplits, Pool, Settings


class SamplerSettings(Settings):
    """Settings that every sampler has (none); subclasses add their own."""


class Sampler(ABC):
    """Base class of all samplers.

    Class attributes:
        Settings: The settings class.
        reads: Teacher outputs that ``rank`` needs in the pool, of "embedding" and "logits".
        balanced: Whether the first k*K examples are k of each of K equally large classes; here
            the setting ``per_class``, and False without one.
        defaults: Run settings that suit the sampler, nested as in a run configuration.
    """

    Settings: ClassVar[type[SamplerSettings]] = SamplerSettings
    reads: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: SamplerSettings | None = None) -> None:
        self.settings = settings or self.Settings()

    @property
    def balanced(self) -> bool:
        """Whether the first k*K examples are k of each of K equally large classes."""
        return getattr(self.settings, "per_class", False)

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


def teacher_output(pool: Pool, name: str, sampler: str) -> np.ndarray:
    """The teacher's embeddings (N, D) or logits (N, K), float32.

    Args:
        pool: What the sampler was given.
        name: "embedding" or "logits".
        sampler: Registry name of the sampler that asks, for the message.

    Raises:
        FskdError: If the pool lacks them.
        DataError: If they have another shape, or values that are not finite.
    """
    output = pool.embeddings if name == "embedding" else pool.logits
    if output is None:
        raise FskdError(f"sampler '{sampler}' reads the teacher's {name}; this pool has none")
    values, n = output.float().numpy(force=True), len(pool.targets)
    if values.ndim != 2 or len(values) != n or not values.size:
        raise DataError(f"the teacher's {name} has shape {values.shape}, not ({n}, at least 1)")
    if not np.isfinite(values).all():
        raise DataError(f"the teacher's {name} has values that are not finite")
    return values


samplers: Registry[type[Sampler]] = Registry("sampler", "fskd.data.samplers")
