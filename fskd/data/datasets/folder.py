"""Images of the user's own in one folder per class."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from fskd.data.datasets.base import Source, dataset, image_set
from fskd.data.datasets.decode import centre_square, decode_all, open_rgb
from fskd.data.datasets.files import find_file
from fskd.errors import DataError, SettingError
from fskd.types import DataSplits, ImageSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
DEFAULT_SIDE, MIN_SIDE, MAX_SIDE = 32, 8, 1024

# Both parts together, decoded; above it images stay on disk.
MEMORY_LIMIT = 2 << 30


class FolderImages:
    """Images that stay on disk, decoded to RGB at their own size when asked for.

    Args:
        paths: N files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """One image, decoded; DataError if its file is damaged."""
        return open_rgb(self.paths[index])


@dataset("folder", resizes=True)
def folder(source: Source) -> DataSplits:
    """Images of your own: ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``).

    Classes are the folders in sorted order, the same in both parts. Every image becomes RGB. If
    both parts take at most 2 GiB decoded, they are held in memory as the central square scaled to
    ``image_size``, and the fingerprint covers pixels and labels. Otherwise images stay on disk and
    ``load`` decodes them at their own size; the fingerprint then covers relative paths, file sizes
    and labels, so a file replaced by another of equal length is not noticed. Mean and standard
    deviation are those of ImageNet.

    Args:
        source: The root holds the two parts. ``image_size`` is the side in pixels, 8..1024, 32 by
            default.

    Raises:
        SettingError: The folders were not found, or the size is out of range.
        DataError: The parts have different classes, a class is empty, or a file is damaged.
    """
    side = DEFAULT_SIDE if source.image_size is None else source.image_size
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise SettingError("data.image_size", side, f"a whole number {MIN_SIDE}..{MAX_SIDE}")
    roots = [source.root] if source.root else []
    what = "train/<class>/* and test/<class>/* (or val/<class>/*)"
    train = find_file([root / "train" for root in roots], source, what)
    test = find_file([root / name for root in roots for name in ("test", "val")], source, what)
    classes = _common_classes(train, test)
    parts = [_examples(part, classes) for part in (train, test)]
    in_memory = sum(len(part.paths) for part in parts) * 3 * side * side <= MEMORY_LIMIT
    read = _read if in_memory else _index
    return DataSplits(*(read(part, classes, side) for part in parts))


def _common_classes(train: Path, test: Path) -> list[str]:
    names = [_class_names(part) for part in (train, test)]
    for part, own, other in ((train, names[0], names[1]), (test, names[1], names[0])):
        absent = sorted(other - own)
        if absent:
            listing = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise DataError(f"{part} lacks {len(absent)} class(es) of the other part: {listing}")
    if not names[0]:
        raise DataError(f"{train} has no class folders")
    return sorted(names[0])


def _class_names(part: Path) -> set[str]:
    if not part.is_dir():
        raise DataError(f"{part} is not a folder")
    # Hidden folders are left by tools such as notebooks and file managers.
    return {path.name for path in part.iterdir() if path.is_dir() and path.name[0] != "."}


class _Part(NamedTuple):
    folder: Path
    paths: list[Path]
    labels: list[int]


def _examples(part: Path, classes: Sequence[str]) -> _Part:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (part / name).iterdir()
            if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
        if not found:
            raise DataError(f"{part / name} has no images ({', '.join(sorted(SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    return _Part(part, paths, labels)


def _read(part: _Part, classes: Sequence[str], side: int) -> ImageSet:
    pixels = decode_all(part.paths, side, partial(centre_square, side=side))
    return image_set(pixels, part.labels, classes, MEAN, STD)


def _index(part: _Part, classes: Sequence[str], side: int) -> ImageSet:
    digest = hashlib.sha256()
    for path, label in zip(part.paths, part.labels, strict=True):
        name = path.relative_to(part.folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0{label}\n".encode(errors="surrogateescape"))
    return ImageSet(
        images=FolderImages(part.paths),
        targets=torch.tensor(part.labels),
        classes=tuple(classes),
        mean=MEAN,
        std=STD,
        fingerprint=digest.hexdigest(),
        size=(3, side, side),
    )
