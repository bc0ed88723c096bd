"""When rows are generated beside real ones: one schedule a file, chosen with ``generator.when``."""

from abc import ABC, abstractmethod

import torch

from fskd.registry import Registry


class Schedule(ABC):
    """How many rows of a step are real, and whether generated ones join or replace them.

    Args:
        share: Share of generated rows, in (0, 1].
        real_probability: Of a step that is all real, where steps take turns.
        scale_epochs: Whether training is lengthened by what generated steps take from it.
    """

    def __init__(self, share: float, real_probability: float, scale_epochs: bool) -> None:
        self.share, self.real_probability = share, real_probability
        self.scale_epochs = scale_epochs

    @abstractmethod
    def rows(self, total: int) -> tuple[int, int]:
        """(rows to draw, rows to generate) for ``total`` student rows a step.

        Raises:
            SettingError: If one row is to hold both real and generated ones.
        """

    @property
    def replaces(self) -> bool:
        """Whether generated rows stand in the place of the others."""
        return self.share == 1

    def all_real(self, turn: torch.Generator) -> bool:
        """Whether a step has no generated rows."""
        return False

    def expected(self, drawn: int, found: int) -> float:
        """Mean number of a step's real rows: ``drawn`` are drawn, and one batch has ``found``."""
        return float(found)

    @property
    def step_scale(self) -> float:
        """Factor on the number of steps."""
        return 1.0


schedules: Registry[type[Schedule]] = Registry("schedule", "fskd.generators.schedules")
