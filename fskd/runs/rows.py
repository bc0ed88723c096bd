"""How the rows of a step are divided among kinds, and which images the unlabelled ones are of."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fskd.data.datasets.base import fingerprint
from fskd.data.pictures import folder_fingerprint
from fskd.data.splits import Subset
from fskd.data.unlabelled import Unlabelled, from_folder, from_images, from_training
from fskd.errors import SettingError
from fskd.generators.base import Generator
from fskd.seeding import derive
from fskd.settings import DataConfig
from fskd.types import ImageSet


class Rows(NamedTuple):
    """Rows of a step, over all processes.

    Attributes:
        real: Labelled rows to draw.
        unlabelled: Unlabelled images to draw; 0 for none.
        views: Rows of each unlabelled image.
        generated: Rows to generate.
    """

    real: int
    unlabelled: int
    views: int
    generated: int


def divide(total: int, generator: Generator | None, share: float | None, views: int) -> Rows:
    """Divides the student rows of a step.

    Args:
        total: How many they are.
        generator: Says how many of them are generated.
        share: Unlabelled share of the others; None without unlabelled images.
        views: Rows of each unlabelled image.

    Raises:
        SettingError: If there are too few for one row of every kind.

    Example:
        >>> divide(64, None, 0.75, 2)
        Rows(real=16, unlabelled=24, views=2, generated=64)
    """
    known, generated = (total, total) if generator is None else generator.schedule.rows(total)
    if share is None:
        return Rows(known, 0, views, generated)
    if known < 1 + views:
        given = f"{total} ({known} that are not generated)"
        accepted = f"a labelled row and {views} unlabelled ones"
        raise SettingError("optim.batch_size", given, f"room for {accepted}")
    images = min(max(round(known * share / views), 1), (known - 1) // views)
    return Rows(known - views * images, images, views, generated)


def unlabelled_images(
    data: DataConfig, train: ImageSet, subset: Subset, seed: int, given: Tensor | None = None
) -> Unlabelled | None:
    """The unlabelled images of a run; None without ``data.unlabelled``.

    Args:
        data: The settings.
        train: The training images.
        subset: The labelled examples.
        seed: Run seed, from which the crops of pictures in a folder follow.
        given: Images handed over from Python, uint8 (N, C, H, W).

    Raises:
        SettingError: If there are not as many as asked for, or a folder will not do.
    """
    if given is not None:
        return from_images(given, train)
    asked = data.unlabelled
    if asked is None:
        return None
    if isinstance(asked, int) or asked == "rest":
        return from_training(train, subset.left, asked)
    return from_folder(asked, train, derive(seed, "unlabelled"), _root(data), data.background)


def unlabelled_hash(data: DataConfig, train: ImageSet, given: Tensor | None = None) -> str | None:
    """Hash of unlabelled images from a folder or from Python; None if there are no such."""
    if given is not None:
        return fingerprint(given)
    if not isinstance(data.unlabelled, str) or data.unlabelled == "rest":
        return None
    return folder_fingerprint(data.unlabelled, train, _root(data))


def _root(data: DataConfig) -> Path | None:
    return None if data.root is None else Path(data.root)
