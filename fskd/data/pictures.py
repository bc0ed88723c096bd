"""Pictures in a folder of any depth, and one random crop of each."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fskd.data.datasets.decode import Look, each, open_rgb
from fskd.data.datasets.depth import deep_files, white_of
from fskd.data.datasets.folder import MEMORY_LIMIT, TEST_NAMES, TRAIN_NAMES
from fskd.data.datasets.listing import find_pictures, readable
from fskd.errors import SettingError
from fskd.seeding import numpy_generator
from fskd.types import ImageSet

LEAST = 0.5  # of the height of the largest crop that fits


class File(NamedTuple):
    """A picture on disk; time and size tell whether it was changed."""

    path: Path
    time: int
    size: int


def pictures(
    folder: str, root: Path | None = None, classes: Collection[str] = ()
) -> tuple[File, ...]:
    """The pictures of a folder and the folders in it, in the order of their names.

    Args:
        folder: The folder.
        root: Where the data lie; their test part is refused.
        classes: Their classes.

    Raises:
        SettingError: If there is no such folder, it is empty, or holds the data's test images.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        accepted = "rest, a number of training images, or a folder of images (there is none)"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    found = find_pictures(place).pictures
    if not found:
        accepted = f"a folder with images ({', '.join(sorted(readable()))})"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    tested = (
        None
        if root is None
        else next((path for path in found if _is_test(path, root, classes)), None)
    )
    if tested is not None:
        accepted = f"a folder without the data's test images, such as {tested}"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    return tuple(_stamped(path) for path in found)


def _is_test(path: Path, root: Path, classes: Collection[str]) -> bool:
    """Whether a file is, or may be, in ``<root>``'s test part or in ``<data set>/val``."""
    real, home = path.resolve(), root.expanduser().resolve()
    if not real.is_relative_to(home):
        return False
    first, *rest = real.relative_to(home).parts[:-1] or ("",)
    divided = first in classes and not any((home / n).exists() for n in ("train", "test", "val"))
    first = first.lower()
    inner = first not in TRAIN_NAMES and bool(rest) and rest[0].lower() in TEST_NAMES
    apart = first in TEST_NAMES or inner
    return divided or apart


def _stamped(path: Path) -> File:
    try:
        about = path.stat()
    except OSError:  # a link to nowhere
        return File(path, 0, 0)
    return File(path, about.st_mtime_ns, about.st_size)


def held_in_memory(files: Sequence[File], train: ImageSet) -> bool:
    """Whether the crops are, rather than cut when asked for."""
    room = len(files) * int(np.prod(train.size)) <= MEMORY_LIMIT
    return room and isinstance(train.images, Tensor)


def folder_fingerprint(folder: str, train: ImageSet, root: Path | None = None) -> str:
    """sha256 of the files' bytes, or of names and sizes where crops are not held in memory."""
    files = pictures(folder, root, train.classes)
    if held_in_memory(files, train):
        return _bytes_hash(files)
    place, digest = Path(folder).expanduser(), hashlib.sha256()
    for file in files:
        name = file.path.relative_to(place).as_posix()
        digest.update(f"{name}\0{file.size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _bytes_hash(files: tuple[File, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            content = file.path.read_bytes()
        except OSError:
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


class Crops:
    """Crops of pictures that stay on disk.

    Args:
        files: (index, file) of N pictures.
        size: (C, H, W) of the training images.
        seed: Seed of the crops.
        look: How they are read.
    """

    def __init__(
        self, files: Sequence[tuple[int, Path]], size: tuple[int, int, int], seed: int, look: Look
    ) -> None:
        self.files, self.size, self.seed, self.look = tuple(files), size, seed, look

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Image.Image:
        """One crop; DataError if its file is damaged."""
        number, path = self.files[index]
        return cut_out(open_rgb(path, self.look), self.size, self.seed, number)


def crop_box(
    given: tuple[int, int], size: tuple[int, int, int], seed: int, index: int
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the random crop of a picture.

    Args:
        given: (width, height) of the picture.
        size: (C, H, W) of the training images.
        seed: Seed of the crops.
        index: Of the picture.

    Example:
        >>> left, top, right, bottom = crop_box((40, 30), (3, 8, 8), seed=0, index=0)
        >>> 15 <= right - left <= 30, abs(right - left - bottom + top) < 1e-9, bottom <= 30
        (True, True, True)
    """
    scale, x, y = numpy_generator(seed, "crop", index).random(3).tolist()
    largest = min(given[0] / size[2], given[1] / size[1])
    width, height = (side * largest * (LEAST + (1 - LEAST) * scale) for side in size[:0:-1])
    left, top = x * (given[0] - width), y * (given[1] - height)
    return left, top, min(left + width, given[0]), min(top + height, given[1])


def cut_out(image: Image.Image, size: tuple[int, int, int], seed: int, index: int) -> Image.Image:
    """The random crop of a picture, scaled to the size of the training images."""
    channels, height, width = size
    box = crop_box(image.size, size, seed, index)
    return _coloured(image.resize((width, height), Image.Resampling.BILINEAR, box=box), channels)


def _coloured(image: Image.Image, channels: int) -> Image.Image:
    return image.convert("L") if channels == 1 else image


@lru_cache(maxsize=2)
def cropped(
    files: tuple[File, ...], size: tuple[int, int, int], seed: int, background: str = "white"
) -> tuple[Tensor, list[Path]]:
    """uint8 crops (N, C, H, W), and the files that cannot be read."""
    channels, height, width = size
    pixels = np.empty((len(files), height, width, channels), np.uint8)
    look = _look(files, background)

    def cut(index: int) -> None:
        crop = cut_out(open_rgb(files[index].path, look), size, seed, index)
        pixels[index] = np.asarray(crop).reshape(height, width, channels)

    good, bad = _apart(files, cut)
    return torch.from_numpy(pixels[good].transpose(0, 3, 1, 2).copy()), bad


@lru_cache(maxsize=2)
def indexed(
    files: tuple[File, ...], size: tuple[int, int, int], seed: int, background: str = "white"
) -> tuple[Crops, list[Path]]:
    """Crops on disk, and the files that cannot be read: all are decoded once to find these."""
    look = _look(files, background)

    def check(index: int) -> None:
        open_rgb(files[index].path, look)

    good, bad = _apart(files, check)
    return Crops([(index, files[index].path) for index in good], size, seed, look), bad


def _look(files: Sequence[File], background: str) -> Look:
    white = white_of(deep_files([file.path for file in files]), "data.unlabelled")
    return Look(background, white)


def _apart(files: Sequence[File], use: Callable[[int], None]) -> tuple[list[int], list[Path]]:
    """Indices of the files that could be used, and the others."""
    bad = each([file.path for file in files], use)
    good = [index for index in range(len(files)) if index not in bad]
    return good, [files[index].path for index in bad]
