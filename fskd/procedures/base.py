"""The interface of a procedure: several trainings, or work on networks beside them.

A method is terms of one loop. A procedure arranges whole trainings: chains of them, networks cut,
grafted or fitted piece by piece. It is blind to folders and devices; what it may do with the run
that it serves is given to it as tools.
"""

from abc import ABC, abstractmethod
from typing import Protocol

from fskd.config import RunConfig
from fskd.registry import Registry


class Tools(Protocol):
    """What a procedure may use."""

    def teachers(self, config: RunConfig) -> tuple[RunConfig, ...]:
        """The runs that make a run's teachers; none if they are from files or Python."""

    def finished(self, config: RunConfig) -> bool:
        """Whether a run has been made already."""

    def fit(self, config: RunConfig) -> None:
        """Carries out an ordinary run and keeps its network; found if it is finished."""

    def say(self, line: str) -> None:
        """Shows a line to the user."""


class Procedure(ABC):
    """Base class of all procedures."""

    @abstractmethod
    def run(self, config: RunConfig, tools: Tools) -> None:
        """Does what has to be done for a run before, or instead of, its own training.

        Args:
            config: The run.
            tools: What may be done.
        """


procedures: Registry[type[Procedure]] = Registry("procedure", "fskd.procedures")
