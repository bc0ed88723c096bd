"""The interface of a generator: a batch of real rows -> the batch with generated rows behind them.

A generator owns no network (a search between epochs may ask one, see ``on_epoch``). It says how
many rows it wants, draws from the random stream it is given, and leaves inputs, labels and indices
of the real rows as they are, or drops the real rows altogether. Because generated rows follow the
real ones, any generator works with any method.

This class asks the parts that say when rows are generated (``schedules``) and which rows are mixed
(``partners``), puts them side by side and keeps account of whose classes went into which row; a
generator, the mixer, is the few lines that make one row of two (``mix``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from fskd.generators.partners import partners
from fskd.generators.schedules import Schedule, schedules
from fskd.registry import Registry
from fskd.seeding import to_device
from fskd.types import Batch, Settings, Tools


class GeneratorSettings(Settings):
    """Settings of every generator: how many rows are generated, and when."""

    share: float = Field(0.5, gt=0, le=1, description="Share of generated rows; 1: no real rows.")
    when: str = Field(
        "joint",
        description="joint: every step; alternate: a step is all real or all generated, and then"
        " the weight of its only term cancels.",
    )
    real_probability: float = Field(
        0.5, gt=0, lt=1, description="alternate: probability that a step is real."
    )
    scale_epochs: bool = Field(
        False, description="alternate: lengthen training by 1/real_probability."
    )
    pairs: str = Field("all", description="Which pairs are mixed.")

    @field_validator("when")
    @classmethod
    def _scheduled(cls, name: str) -> str:
        return _known(name, schedules)

    @field_validator("pairs")
    @classmethod
    def _ruled(cls, name: str) -> str:
        return _known(name, partners)


def _known(name: str, parts: Registry[Any]) -> str:
    if name not in parts.names():
        *others, last = (f"'{part}'" for part in parts.names())
        raise ValueError(f"Input should be {', '.join(others)} or {last}")
    return name


class Mixed(NamedTuple):
    """Generated rows.

    Attributes:
        inputs: (M, *shape).
        share: Of the first parent in each row, (M,), float in [0, 1].
    """

    inputs: Tensor
    share: Tensor


class Generator(ABC):
    """Base class of all generators; call it with a batch and a random stream.

    Args:
        settings: An instance of ``Settings``; the defaults if None.

    Class attributes:
        Settings: The settings class.
        asks: Whether ``on_epoch`` asks the teacher, without whom it is refused.
    """

    Settings: ClassVar[type[GeneratorSettings]] = GeneratorSettings
    asks: ClassVar[bool] = False

    def __init__(self, settings: GeneratorSettings | None = None) -> None:
        self.settings = settings or self.Settings()
        own = self.settings
        kind: type[Schedule] = schedules.get(own.when)
        self.schedule = kind(own.share, own.real_probability, own.scale_epochs)

    @abstractmethod
    def mix(self, first: Tensor, partner: Tensor, rng: torch.Generator) -> Mixed:
        """A row from each of M pairs, whatever the shape of a row.

        Args:
            first: (M, *shape), M > 0.
            partner: (M, *shape).
            rng: CPU generator; what is drawn from it is moved with ``fskd.seeding.to_device``.
        """

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027 - most take any
        """SettingError unless rows of this shape can be mixed; called before any training."""

    def on_epoch(self, tools: Tools) -> None:  # noqa: B027 - most do nothing
        """Called when an epoch begins, for generators that search; does nothing here.

        Only in phases that read generated rows, and not before the first step. Of several processes
        each calls it, and all go on with the first one's ``state_dict``.
        """

    def passes(self, before: int, epoch: int) -> int:
        """Passes over the subset for which ``on_epoch`` asks the teacher, to foresee the cost.

        Args:
            before: The epoch for which it was called before.
            epoch: The epoch that begins.
        """
        return 0

    @property
    def found(self) -> Sequence[Mapping[str, Any]]:
        """What searches found, a record of plain values each; kept in the result."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs (plain values and tensors); empty for most generators."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restores what ``state_dict`` gave."""

    def __call__(
        self,
        batch: Batch,
        rng: torch.Generator,
        n: int | None = None,
        turn: torch.Generator | None = None,
        labelled: bool = False,
    ) -> Batch:
        """The batch with generated rows.

        Args:
            batch: Real rows, and unlabelled ones behind them if there are some.
            rng: CPU generator; the only source of randomness.
            n: Rows to generate; by default what ``share`` gives for this many rows.
            turn: Decides whether an ``alternate`` step is real; ``rng`` if None. Processes that
                generate for themselves share it, so that they take turns together.
            labelled: Whether unlabelled rows are no parents, as with ``different_class``.

        Returns:
            The rows given (none with ``share`` = 1 or in a generated step of ``alternate``)
            followed by ``n`` generated rows. The batch itself if no row can be generated, as with
            ``different_class`` in a batch of one class.
        """
        settings, schedule, known = self.settings, self.schedule, batch.n_known
        if schedule.all_real(turn or rng):
            return batch
        if n is None:
            part = settings.share
            n = known if schedule.replaces else max(round(known * part / (1 - part)), 1)
        targets = batch.targets
        if known > batch.n_real and not labelled and settings.pairs != "different_class":
            targets = F.pad(targets, (0, known - batch.n_real), value=-1)
        pairs = partners.get(settings.pairs)(targets, n, rng) if n and len(targets) else None
        if pairs is None:
            return batch
        first, partner = (to_device(index, batch.inputs.device) for index in pairs)
        mixed = self.mix(batch.inputs[first], batch.inputs[partner], rng)
        share = to_device(mixed.share, batch.inputs.device)
        keep = 0 if schedule.replaces else known
        return Batch(
            torch.cat([batch.inputs[:keep], mixed.inputs]),
            batch.targets[:keep],
            batch.indices[:keep],
            {
                **(batch.parts if keep else {}),
                "generated": slice(keep, keep + len(mixed.inputs)),
            },
            parents=torch.stack([targets[first], targets[partner]], 1),
            shares=torch.stack([share, 1 - share], 1),
        )


generators: Registry[type[Generator]] = Registry("generator", "fskd.generators")
