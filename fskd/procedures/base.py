"""The interface of a procedure: a method that is more than one loop over a loss.

A procedure arranges whole trainings, or works on networks beside them: chains, networks that are
cut, grafted or fitted piece by piece. Like any method it says as data what its loop reads, and it
is chosen, listed and measured like one. It is blind to folders and devices; what it may do with
the run that it serves is given to it as ``Hands``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fskd.methods.base import Method
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Teacher


class Hands(Protocol):
    """What a procedure may use.

    Attributes:
        student: The network that is trained, in place.
        teacher: Frozen, with its weights; ``ask`` counts.
        size: (C, H, W) of the images.
        steps: Optimiser updates that the run may make.
        rng: CPU generator of this run.
    """

    student: FeatureNet
    teacher: Teacher
    size: tuple[int, int, int]
    steps: int
    rng: torch.Generator

    def images(self) -> Iterator[Tensor]:
        """The subset's images in order, as networks see them and unmoved, some at a time."""

    def train(self) -> None:
        """The ordinary loop, over all phases of the procedure."""

    def descend(
        self,
        loss: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        steps: int,
        lr: float | None = None,
    ) -> float:
        """Steps of the run's optimiser on a loss of the batches' images; the mean of the last few.

        Rows and updates are counted. The modes of networks are left as they are.

        Args:
            loss: Scalar for images (rows, C, H, W).
            parameters: What is updated.
            steps: Updates.
            lr: Learning rate, constant; the run's, with its schedule, if None.
        """

    def look(self, images: Tensor) -> None:
        """Runs the student on images in eval mode and without gradient; rows are counted."""

    def say(self, line: str) -> None:
        """Shows a line to the user."""

    def note(self, name: str, value: Any) -> None:
        """Keeps a plain value in the result, under ``procedure``."""


class Procedure(Method):
    """Base class of all procedures. They stand alone: none is joined to another method by ``+``."""

    ensemble: bool = False
    """Whether the mean of the softmaxes of all links that are like the student is measured."""

    asks: ClassVar[bool] = False
    """Whether it reads the teacher's features beside its loop."""

    @property
    def updates(self) -> bool:
        """Whether it makes any updates with these settings."""
        return True

    @property
    def hop(self) -> Mapping[str, Any]:
        """Name and settings of the method by which the links of a chain learn."""
        return {}

    def links(self, teacher: str, student: str) -> Sequence[str]:
        """Networks between teacher and student, each distilled from the one before it.

        Args:
            teacher: Its name.
            student: Its name.
        """
        return ()

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        """SettingError unless these networks will do; called before any training.

        Args:
            student: The student.
            teacher: The teacher, which may have no weights yet.
            size: (C, H, W) of the images.
        """

    def run(self, hands: Hands) -> None:
        """Everything between preparation and measuring; by default the ordinary loop."""
        hands.train()
