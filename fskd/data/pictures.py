"""Pictures in a folder of any depth, and one random crop of each."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fskd.data.datasets.decode import open_rgb
from fskd.data.datasets.folder import MEMORY_LIMIT, SUFFIXES
from fskd.errors import DataError, SettingError
from fskd.seeding import numpy_generator
from fskd.types import ImageSet

LEAST = 0.5  # of the height of the largest crop that fits
TEST_PARTS = ("test", "val")
N_THREADS = 4


class File(NamedTuple):
    """A picture on disk; time and size tell whether it was changed."""

    path: Path
    time: int
    size: int


def pictures(folder: str, root: Path | None = None) -> tuple[File, ...]:
    """The pictures of a folder and the folders in it, in the order of their names.

    Args:
        folder: The folder.
        root: Where the data lie; their test part is refused.

    Raises:
        SettingError: If there is no such folder, it is empty, or holds the data's test images.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        accepted = "rest, a number of training images, or a folder of images (there is none)"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    found = sorted(
        path
        for path in place.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part[0] == "." for part in path.relative_to(place).parts)
        and not path.is_dir()
    )
    if not found:
        accepted = f"a folder with images ({', '.join(sorted(SUFFIXES))})"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    tested = None if root is None else next((p for p in found if _is_test(p, root)), None)
    if tested is not None:
        accepted = f"a folder without the data's test images, such as {tested}"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    return tuple(_stamped(path) for path in found)


def _is_test(path: Path, root: Path) -> bool:
    """Whether a file is in ``<root>/test``, ``<root>/val`` or ``<root>/<data set>/val``."""
    real, home = path.resolve(), root.expanduser().resolve()
    if not real.is_relative_to(home):
        return False
    first, *rest = real.relative_to(home).parts[:-1] or ("",)
    return first in TEST_PARTS or (first != "train" and bool(rest) and rest[0] in TEST_PARTS)


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
    files = pictures(folder, root)
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
    """Crops of pictures that stay on disk, at the pictures' own scale.

    Args:
        files: (index, file) of N pictures.
        size: (C, H, W) of the training images.
        seed: Seed of the crops.
    """

    def __init__(
        self, files: Sequence[tuple[int, Path]], size: tuple[int, int, int], seed: int
    ) -> None:
        self.files, self.size, self.seed = tuple(files), size, seed

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Image.Image:
        """One crop; DataError if its file is damaged."""
        number, path = self.files[index]
        image = open_rgb(path)
        left, top, right, bottom = crop_box(image.size, self.size, self.seed, number)
        box = (
            int(left),
            int(top),
            max(round(right), int(left) + 1),
            max(round(bottom), int(top) + 1),
        )
        return _coloured(image.crop(box), self.size[0])


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


def _coloured(image: Image.Image, channels: int) -> Image.Image:
    return image.convert("L") if channels == 1 else image


@lru_cache(maxsize=2)
def cropped(
    files: tuple[File, ...], size: tuple[int, int, int], seed: int
) -> tuple[Tensor, list[Path]]:
    """uint8 crops (N, C, H, W), and the files that cannot be read."""
    channels, height, width = size
    pixels = np.empty((len(files), height, width, channels), np.uint8)

    def cut(index: int) -> None:
        image = open_rgb(files[index].path)
        box = crop_box(image.size, size, seed, index)
        small = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        pixels[index] = np.asarray(_coloured(small, channels)).reshape(height, width, channels)

    good, bad = _apart(files, cut)
    return torch.from_numpy(pixels[good].transpose(0, 3, 1, 2).copy()), bad


@lru_cache(maxsize=2)
def indexed(
    files: tuple[File, ...], size: tuple[int, int, int], seed: int
) -> tuple[Crops, list[Path]]:
    """Crops on disk, and the files that are no pictures; only their beginnings are read."""

    def look(index: int) -> None:
        try:
            with Image.open(files[index].path) as image:
                image.verify()
        except Exception as error:  # Pillow fails in many ways on a damaged file
            raise DataError(str(error)) from None

    good, bad = _apart(files, look)
    return Crops([(index, files[index].path) for index in good], size, seed), bad


def _apart(files: Sequence[File], use: Callable[[int], None]) -> tuple[list[int], list[Path]]:
    """Indices of the files that could be used, and the others."""

    def works(index: int) -> bool:
        try:
            use(index)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(N_THREADS) as pool:
        worked = list(pool.map(works, range(len(files))))
    good = [index for index, fine in enumerate(worked) if fine]
    return good, [file.path for file, fine in zip(files, worked, strict=True) if not fine]
