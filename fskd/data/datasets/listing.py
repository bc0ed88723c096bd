"""Which files of a folder are pictures, and of what kinds the others are."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Raster formats that Pillow may open, some with a plug-in. Others that it opens run programs (EPS)
# or are no pictures (PDF, MPEG).
KINDS = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "tif", "tiff", "webp"),
        *("avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "ppm", "pgm", "pbm", "pnm", "tga"),
    )
)
PLUGIN = dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif")


@lru_cache(maxsize=1)
def readable() -> frozenset[str]:
    """Suffixes of the pictures that can be read here, lower case."""
    try:
        from pillow_heif import register_heif_opener  # an optional plug-in of Pillow

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    return KINDS & known


class Found(NamedTuple):
    """The files in a folder and the folders in it.

    Attributes:
        pictures: Those with the suffix of a picture, sorted by path.
        others: How many others there are of each suffix (``no suffix``).
    """

    pictures: list[Path]
    others: Counter[str]


def find_pictures(folder: Path) -> Found:
    """Looks through a folder; hidden files and folders are left to the tools that made them."""
    found = Found([], Counter())
    for path in _files(folder):
        kind = path.suffix.lower()
        if kind in readable():
            found.pictures.append(path)
        else:
            found.others[kind or "no suffix"] += 1
    found.pictures.sort()
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth, also behind links; each folder once, since links may go in a circle."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if name[0] != ".")
        yield from (Path(place, name) for name in names if name[0] != ".")


def told(others: Mapping[str, int]) -> str:
    """Counts by kind as a phrase, most frequent first.

    Example:
        >>> told({".svg": 2, ".txt": 1})
        '2 .svg, 1 .txt'
    """
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {kind}{_way_out(kind)}" for kind, n in kinds)


def _way_out(kind: str) -> str:
    return f" (pip install {PLUGIN[kind]})" if kind in PLUGIN else ""
