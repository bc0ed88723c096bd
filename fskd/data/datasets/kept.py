"""Decoded images kept on disk, so that the next run starts at once.

They lie in ``$XDG_CACHE_HOME/fskd/images`` (``~/.cache`` without it), one file per set of files and
way of reading them. The oldest go when there is no more room; all of them may be deleted any time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import safetensors
import safetensors.numpy

from fskd.data.datasets.decode import Look, each, open_rgb
from fskd.results.store import replacing

VERSION = 1  # of how files are decoded


class Decoded(NamedTuple):
    """What reading a list of files gave.

    Attributes:
        pixels: uint8 (N, 3, side, side); no rows where they were only looked at.
        bad: Index and reason of each file that could not be read.
        white: Value of white in deep images, see ``decode``.
    """

    pixels: np.ndarray
    bad: dict[int, str]
    white: float


def place() -> Path:
    """Where decoded images are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fskd" / "images"


def kept(
    paths: Sequence[Path], look: Look, what: str, room: float, make: Callable[[], Decoded]
) -> Decoded:
    """What ``make`` gives, from disk if these very files were read before.

    Args:
        paths: The files. They count as the same while their names, sizes and times are, also the
            time of the last change to owner, rights or content: unpacking sets the other one.
        look: How they are read.
        what: What is made of them.
        room: GiB that may be used on disk.
        make: Reads them.
    """
    if room <= 0:
        return make()
    try:
        file = place() / f"{_key(paths, look, what)}.safetensors"
    except RuntimeError:  # users of containers may have no home
        return make()
    found = _read(file)
    if found is None or _mended(found, paths, look):
        found = make()
        _write(file, found, int(room * (1 << 30)))
    return found


def _mended(found: Decoded, paths: Sequence[Path], look: Look) -> bool:
    """Whether a file can be read that could not: what kept one from it need not be in the file."""
    bad, look = list(found.bad), look._replace(white=found.white)

    def use(index: int) -> None:
        open_rgb(paths[bad[index]], look)

    return len(each([paths[index] for index in bad], use)) < len(bad)


def _key(paths: Sequence[Path], look: Look, what: str) -> str:
    digest = hashlib.sha256(repr((VERSION, PIL.__version__, look, what)).encode())
    for path in paths:
        about = path.stat() if path.exists() else None  # a link to nowhere has none
        stamp = None if about is None else (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        digest.update(f"{path.absolute()}\0{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read(file: Path) -> Decoded | None:
    """None unless the file is there and whole."""
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            about = json.loads((stored.metadata() or {})["about"])
            pixels = stored.get_tensor("pixels")
        if about["sha256"] != _hash(pixels):
            return None
        os.utime(file)  # it was of use
        bad = {int(index): str(text) for index, text in about["bad"].items()}
        return Decoded(pixels, bad, float(about["white"]))
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _write(file: Path, found: Decoded, room: int) -> None:
    if found.pixels.nbytes > room:
        return
    about: dict[str, Any] = {
        "sha256": _hash(found.pixels), "bad": found.bad, "white": found.white
    }  # fmt: skip
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            safetensors.numpy.save_file(
                {"pixels": found.pixels}, temporary, {"about": json.dumps(about)}
            )
        _make_room(file.parent, room)
    except (OSError, safetensors.SafetensorError):
        pass  # a full or read-only disk costs time, no result


def _make_room(folder: Path, room: int) -> None:
    files = [(path, path.stat()) for path in folder.glob("*.safetensors")]
    for path, about in sorted(files, key=lambda item: -item[1].st_mtime_ns):
        room -= about.st_size
        if room < 0:
            path.unlink(missing_ok=True)


def _hash(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
