"""The IDX format of MNIST and its successors: a big-endian header, then unsigned bytes.

Header: two zero bytes, the type (8 for unsigned bytes), the number of axes, then each axis's
length as 4 bytes (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from fskd.data.datasets.base import Source, image_set
from fskd.data.datasets.files import fetch, find_file, first_existing, one_line
from fskd.errors import DataError
from fskd.types import DataSplits, ImageSet

_UNSIGNED_BYTE = 8
# A damaged header may claim any size; 2 GiB is far above every set in this format.
_MAX_BYTES = 2 << 30


def read_idx(path: Path, n_axes: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, plain or compressed with gzip.

    Args:
        path: File; the suffix ``.gz`` says that it is compressed.
        n_axes: Axes that the file must have: 3 for images, 1 for labels.

    Returns:
        uint8 array with ``n_axes`` axes.

    Raises:
        DataError: The file cannot be read, is no IDX file of bytes, has other axes, or is shorter
            or longer than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, n_axes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


def _read(file: IO[bytes] | gzip.GzipFile, path: Path, n_axes: int) -> np.ndarray:
    header = file.read(4 + 4 * n_axes)
    if header[:4] != bytes((0, 0, _UNSIGNED_BYTE, n_axes)) or len(header) < 4 + 4 * n_axes:
        raise DataError(f"{path} is not an IDX file of bytes with {n_axes} axes")
    shape = struct.unpack(f">{n_axes}I", header[4:])
    size = math.prod(shape)
    if size > _MAX_BYTES:
        raise DataError(f"{path}: its header claims shape {shape}, which is too large")
    content = file.read(size + 1)
    if len(content) != size:
        relation = "less" if len(content) < size else "more"
        raise DataError(f"{path} holds {relation} data than its header says, {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def read_mnist_like(
    source: Source,
    folder: str,
    classes: Sequence[str],
    mean: float,
    std: float,
    other_places: Sequence[Path] = (),
) -> DataSplits:
    """Reads the four files that MNIST and its successors consist of.

    They are looked for in the root, in ``<folder>/raw`` below it as torchvision lays them out,
    then in ``other_places``; last they are downloaded if the source allows it.

    Args:
        source: Where to look.
        folder: Class of ``torchvision.datasets``, which is also the name of its folder.
        classes: K names.
        mean: Mean pixel of the images scaled to [0, 1].
        std: Standard deviation on the same scale.
        other_places: Folders to look in where the root has no such files.

    Raises:
        SettingError: The files were not found.
        DataError: A file is damaged, images and labels differ in number, or a download failed.
    """
    places = list(other_places)
    if source.root is not None:
        places = [source.root, source.root / folder / "raw", *places]
    if source.download and first_existing(_candidates(places, "train-images-idx3-ubyte")) is None:
        fetch(folder, source, lambda root: _download(folder, root))

    def part(prefix: str) -> ImageSet:
        what = f"the files of {folder}"
        image_names = _candidates(places, f"{prefix}-images-idx3-ubyte")
        image_file = find_file(image_names, source, what)
        # Labels of another folder might belong to other images.
        label_names = _candidates([image_file.parent], f"{prefix}-labels-idx1-ubyte")
        label_file = find_file(label_names, source, what)
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise DataError(f"{image_file}: {len(images)} images but {len(labels)} labels")
        return image_set(images[:, None], labels, classes, (mean,), (std,))

    return DataSplits(part("train"), part("t10k"))


def _candidates(places: Sequence[Path], stem: str) -> list[Path]:
    return [place / (stem + suffix) for place in places for suffix in ("", ".gz")]


def _download(folder: str, root: Path) -> None:
    import torchvision.datasets

    getattr(torchvision.datasets, folder)(root, download=True)
