"""The files of CIFAR-10 and CIFAR-100: pickled or binary, in folders or in the original archive.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Formats:
https://www.cs.toronto.edu/~kriz/cifar.html. Pickles are read without running code.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fskd.data.datasets.base import Source, image_set
from fskd.data.datasets.files import fetch, missing, one_line
from fskd.data.datasets.safe_pickle import PickledArray, as_text, read_pickle
from fskd.errors import DataError
from fskd.types import DataSplits, ImageSet

_PIXELS = 3 * 32 * 32
# The largest real file, CIFAR-100's pickled train part, takes 155 MB.
_MAX_BYTES = 1 << 28


class Files(NamedTuple):
    """One version of the files.

    Attributes:
        folder: Folder that the archive unpacks to.
        archive: Name of the archive.
        train: Files of the training part, in order.
        test: File of the test part.
        names: File with the class names.
        optional_names: Whether the class names may be missing.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    optional_names: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """Files that must be there."""
        return (*self.train, self.test, *(() if self.optional_names else (self.names,)))


class Cifar(NamedTuple):
    """What tells CIFAR-10 and CIFAR-100 apart.

    Attributes:
        title: Class of ``torchvision.datasets``.
        n_classes: K.
        python: Files of the pickled version.
        binary: Files of the binary version.
        labels_key: Key of the labels in a pickled batch.
        names_key: Key of the class names.
        n_label_bytes: Labels before each binary image; the last one is the class.
        mean: Per-channel mean of the training images.
        std: Per-channel standard deviation.
    """

    title: str
    n_classes: int
    python: Files
    binary: Files
    labels_key: str
    names_key: str
    n_label_bytes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Images = tuple[np.ndarray, np.ndarray]


def read_cifar(source: Source, cifar: Cifar) -> DataSplits:
    """Reads whichever version of the files is there; downloads the pickled one if allowed.

    The root may be the folder with the files, the folder above it, or the folder that holds the
    original archive, which is read without unpacking it.

    Args:
        source: Where to look.
        cifar: Which of the two sets.

    Raises:
        SettingError: No version was found.
        DataError: A file is missing beside the others or damaged, or a download failed.
    """
    found = _find(source, cifar)
    if found is None and source.download:
        fetch(cifar.title, source, lambda root: _download(cifar.title, root))
        found = _find(source, cifar)
    if found is None:
        names = (cifar.python.folder, cifar.binary.folder, cifar.python.archive)
        raise missing(source, f"{', '.join(names)} or {cifar.binary.archive}")
    files, place = found
    contents = _read_folder(place, files) if place.is_dir() else _read_archive(place, files)
    if files is cifar.python:
        return _splits(cifar, files, contents, place, _python_batch, _python_names)
    return _splits(cifar, files, contents, place, _binary_batch, _binary_names)


def _find(source: Source, cifar: Cifar) -> tuple[Files, Path] | None:
    if source.root is None:
        return None
    for files in (cifar.python, cifar.binary):
        for folder in (source.root / files.folder, source.root):
            # One file is enough to recognise the version: what else is missing is then named.
            if any((folder / name).is_file() for name in files.needed):
                return files, folder
        for archive in (source.root / files.archive, source.root):
            if archive.name == files.archive and archive.is_file():
                return files, archive
    return None


def _download(title: str, root: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    published = getattr(datasets, title)
    download_url(published.url, root, published.filename, published.tgz_md5)


def _read_folder(folder: Path, files: Files) -> dict[str, bytes]:
    contents = {}
    for name in (*files.needed, files.names):
        path = folder / name
        if path.is_file() or name in files.needed:
            try:
                contents[name] = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    return contents


def _read_archive(archive: Path, files: Files) -> dict[str, bytes]:
    wanted = {f"{files.folder}/{name}": name for name in (*files.needed, files.names)}
    contents = {}
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                if member.size > _MAX_BYTES:
                    raise DataError(f"{archive}: {member.name} is larger than the real file")
                file = tar.extractfile(member)
                contents[name] = file.read() if file else b""
            # The checksum is compared at the very end, which tar alone does not reach.
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read: {one_line(error)}") from error
    absent = [name for name in files.needed if name not in contents]
    if absent:
        raise DataError(f"{archive} lacks {', '.join(absent)}")
    return contents


def _splits(
    cifar: Cifar,
    files: Files,
    contents: Mapping[str, bytes],
    place: Path,
    read_batch: Callable[[bytes, str, Cifar], Images],
    read_names: Callable[[bytes, str, Cifar], tuple[str, ...]],
) -> DataSplits:
    if files.names in contents:
        classes = read_names(contents[files.names], str(place / files.names), cifar)
    else:
        classes = tuple(str(label) for label in range(cifar.n_classes))
    if len(classes) != cifar.n_classes:
        raise DataError(f"{place / files.names}: {len(classes)} names, not {cifar.n_classes}")

    def part(names: tuple[str, ...]) -> ImageSet:
        batches = [read_batch(contents[name], str(place / name), cifar) for name in names]
        sizes = {len(images) for images, _ in batches}
        if len(sizes) > 1:
            raise DataError(f"{place}: batches differ in size, {sorted(sizes)}; one is cut short")
        images = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in batches])
        return image_set(images, labels, classes, cifar.mean, cifar.std)

    return DataSplits(part(files.train), part((files.test,)))


def _python_batch(content: bytes, path: str, cifar: Cifar) -> Images:
    batch = read_pickle(content, path)
    data, labels = batch.get("data"), batch.get(cifar.labels_key)
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise DataError(f"{path} lacks an array 'data' or a list '{cifar.labels_key}'")
    try:
        pixels = data.to_uint8()
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {one_line(error)}") from error
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DataError(f"{path}: 'data' has shape {pixels.shape}, not (N, {_PIXELS})")
    # The bound keeps an absurd number from overflowing int64.
    if not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise DataError(f"{path}: '{cifar.labels_key}' must hold whole numbers only")
    if len(pixels) != len(labels):
        raise DataError(f"{path}: {len(pixels)} images but {len(labels)} labels")
    return pixels, np.array(labels, np.int64)


def _python_names(content: bytes, path: str, cifar: Cifar) -> tuple[str, ...]:
    names = read_pickle(content, path).get(cifar.names_key)
    if not isinstance(names, list):
        raise DataError(f"{path} lacks a list '{cifar.names_key}'")
    return tuple(as_text(name) for name in names)


def _binary_batch(content: bytes, path: str, cifar: Cifar) -> Images:
    size = cifar.n_label_bytes + _PIXELS
    if len(content) % size:
        raise DataError(f"{path}: {len(content)} bytes are no multiple of the {size} of one image")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, cifar.n_label_bytes :], rows[:, cifar.n_label_bytes - 1].astype(np.int64)


def _binary_names(content: bytes, path: str, cifar: Cifar) -> tuple[str, ...]:
    return tuple(content.decode("latin1").split())
