"""Which files of a folder are pictures, and of what kinds the others are."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fskd.errors import DataError

# Raster formats that Pillow may open, some with a plug-in. Others that it opens run programs (EPS)
# or are no pictures (PDF, MPEG).
KINDS = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "tif", "tiff", "webp"),
        *("avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "ppm", "pgm", "pbm", "pnm", "tga"),
    )
)
# Folders of thumbnails, of copies and of deleted files that archivers and file managers leave.
_LEFT_BY_TOOLS = frozenset({"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin"})
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


def made_by_tools(name: str) -> bool:
    """Whether a file or folder is hidden, or a tool's own.

    Example:
        >>> made_by_tools(".ipynb_checkpoints"), made_by_tools("@eaDir"), made_by_tools("cat")
        (True, True, False)
    """
    return name[0] == "." or name.lower() in _LEFT_BY_TOOLS


def find_pictures(folder: Path) -> Found:
    """Looks through a folder; what is ``made_by_tools`` is passed over.

    Raises:
        DataError: A folder in it cannot be read.
    """
    found = Found([], Counter())
    for path in files_in(folder):
        kind = path.suffix.lower()
        if _is_special(path):
            found.others["no file"] += 1
        elif kind in readable():
            found.pictures.append(path)
        else:
            found.others[kind or "no suffix"] += 1
    found.pictures.sort()
    return found


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, which a reader might wait for without end."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nowhere: reading it says so
        return False


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def files_in(folder: Path) -> Iterator[Path]:
    """Files at any depth, also behind links; each folder once, since links may go in a circle."""
    seen = set()
    for place, inner, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not made_by_tools(name))
        yield from (Path(place, name) for name in names if not made_by_tools(name))


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
