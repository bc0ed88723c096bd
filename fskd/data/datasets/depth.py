"""Images of more than 8 bits: which value is white, only their whole data set can tell."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from fskd.errors import DataError

# White of images of 8, 10, 12, 14 and 16 bits, whatever the size of the numbers that hold them.
WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
FLOAT_WHITE = 1.0
# Pillow keeps the upper byte of deep colours alone: darker ones than these have few levels left.
_DARK = 63
# How JPEGs begin, which have 8 bits. Names do not tell: many a PNG is called .jpg.
_JPEG = b"\xff\xd8\xff"


def deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


class Values(NamedTuple):
    """Which values an image of more than 8 bits has: ``floats``, ``integers``, or ``colours``."""

    kind: str
    low: float
    high: float
    file: str = "an image"


def deep_values(image: Image.Image) -> Values | None:
    """Values of an image that was just opened; None if it has 8 bits."""
    if deep(image):
        pixels = np.asarray(image)
        kind = "floats" if image.mode == "F" else "integers"
        return Values(kind, float(pixels.min()), float(pixels.max()))
    if ";16" in str(getattr(image, "tile", "")):  # of which Pillow keeps the upper byte
        ends = image.convert("RGB").getextrema()
        return Values("colours", 0, float(np.max(ends)))
    return None


def white_of(found: Iterable[Values], what: str) -> float:
    """Value of white in the integers of a data set, from the largest value that they use.

    A file of 16 bits may hold 8, 10, 12, 14 or 16; which, only the whole set can tell.

    Args:
        found: Values of its images of more than 8 bits.
        what: Name of the set, for messages.

    Raises:
        DataError: If floats are outside [0, 1] or integers outside 0..65535, or colours of 16 bits
            use their lower bits alone.
    """
    most = {"floats": FLOAT_WHITE, "integers": WHITES[-1], "colours": 255.0}
    largest: dict[str, float] = {}
    for kind, low, high, file in found:
        if not (low >= 0 and high <= most[kind]):  # NaN compares as false
            raise DataError(
                f"{what}: {kind} from {low:.4g} to {high:.4g} in {file}; images need"
                f" 0 to {most[kind]:g}"
            )
        largest[kind] = max(largest.get(kind, 0.0), high)
    if largest.get("colours", 255.0) <= _DARK:
        levels = int(largest["colours"]) + 1
        raise DataError(
            f"{what}: 16-bit colour images whose values end at {levels * 256 - 1}, of which"
            f" {levels} levels could be read; convert them to 8 bits"
        )
    return next(white for white in WHITES if largest.get("integers", WHITES[-1]) <= white)


def deep_files(paths: Sequence[Path]) -> Iterator[Values]:
    """Values of the files that have more than 8 bits, but for damaged ones."""
    for path in paths:
        try:
            with path.open("rb") as file:
                found = None if file.read(len(_JPEG)) == _JPEG else _values(file)
        except Exception:
            continue
        if found is not None:
            yield found._replace(file=str(path))


def _values(file: BinaryIO) -> Values | None:
    file.seek(0)
    with Image.open(file) as image:
        return deep_values(image)
