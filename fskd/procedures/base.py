"""The interface of a procedure: a method that is more than one loop over a loss.

A procedure arranges whole trainings, or works on networks beside them: chains, networks that are
cut, grafted or fitted piece by piece. Like any method it says as data what its loop reads, and it
is chosen, listed and measured like one. It is blind to folders and devices; what it may do with
the run that it serves is given to it as ``Hands``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fskd.methods.base import Method
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Teacher


class Labelled(NamedTuple):
    """Images that a teacher was asked about.

    Attributes:
        images: uint8 (n, C, H, W), on the CPU.
        probs: What it answered, (n, K), float32, rows sum to 1.
    """

    images: Tensor
    probs: Tensor

    def __add__(self, more: "Labelled") -> "Labelled":  # type: ignore[override]
        """Both, one behind the other."""
        return Labelled(*map(torch.cat, zip(self, more, strict=True)))


class Hands(Protocol):
    """What a procedure may use.

    Attributes:
        student: The network that is trained, in place.
        teacher: Frozen, with its weights; ``ask`` counts.
        size: (C, H, W) of the images.
        steps: Optimiser updates that the run may make.
        budget: Rows that the teacher may be asked about; None for any number.
        rng: CPU generator of this run.
    """

    student: FeatureNet
    teacher: Teacher
    size: tuple[int, int, int]
    steps: int
    budget: int | None
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

    def pixels(self) -> Tensor:
        """The subset's images in order, unmoved, uint8 (n, C, H, W) on the CPU."""

    def label(self, name: str, make: Callable[[], Tensor]) -> Labelled:
        """Images and the teacher's probabilities; what was asked before a kill is not asked again.

        Both are kept beside the run until it is finished, and come from there if they are there.

        Args:
            name: Of these images, each name once in a run.
            make: Makes them, uint8 (m, C, H, W); called only if they are not kept.
        """

    def predict(self, images: Tensor) -> Tensor:
        """The student's logits in eval mode, float32 (m, K) on the CPU, for uint8 images."""

    def distil(self, made: Labelled, steps: int) -> None:
        """The ordinary loop on these images and answers, for so many updates; asks nobody.

        The student goes on from where it is; the schedule begins anew. A finished training is not
        repeated after a kill.
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
    makes_images: ClassVar[bool] = False
    """Whether students learn from images that it makes and has labelled, and from no others."""

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

    def queries(self, n_train: int, steps: int, budget: int | None) -> int | None:
        """Rows that it will ask each teacher about; None for those of the ordinary loop.

        Args:
            n_train: n, the images of the subset.
            steps: Optimiser updates of the run.
            budget: Most rows that may be asked; None for any number.

        Raises:
            SettingError: If rows or updates do not suffice.
        """
        return None

    def run(self, hands: Hands) -> None:
        """Everything between preparation and measuring; by default the ordinary loop."""
        hands.train()


def procedure_of(several: Iterable[Method]) -> Procedure | None:
    """The procedure among the methods of a run, of which it is then the only one; None without."""
    return next((one for one in several if isinstance(one, Procedure)), None)
