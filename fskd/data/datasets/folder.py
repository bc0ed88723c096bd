"""Images of the user's own in one folder per class."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from fskd.data.datasets.base import Source, dataset, image_set
from fskd.data.datasets.decode import (
    Look,
    centre_square,
    check_header,
    decode,
    each,
    open_rgb,
    refuse,
)
from fskd.data.datasets.depth import deep_files, white_of
from fskd.data.datasets.files import find_file, first_existing, missing
from fskd.data.datasets.kept import Decoded, kept
from fskd.data.datasets.listing import find_pictures, made_by_tools, readable, told
from fskd.data.hold_out import TEST_SHARE, hold_out
from fskd.data.labels import order_classes
from fskd.errors import DataError, SettingError
from fskd.types import DataSplits, ImageSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE, MIN_SIDE, MAX_SIDE = 32, 8, 1024
# Lower case; others spell them "Training", "Validation" and so on.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")

# Both parts together, decoded; above it images stay on disk.
MEMORY_LIMIT = 2 << 30


class FolderImages:
    """Images that stay on disk: the central square at the side that is needed.

    Args:
        paths: N files.
        look: How they are read.
        side: Height and width in pixels.
    """

    def __init__(self, paths: Sequence[Path], look: Look, side: int) -> None:
        self.paths, self.look, self.side = tuple(paths), look, side

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """One image, decoded; DataError if its file is damaged."""
        return centre_square(open_rgb(self.paths[index], self.look), self.side)


class _Part(NamedTuple):
    """Examples of one part.

    Attributes:
        folder: Where they are.
        paths: Their files.
        labels: Their classes.
        about: What is to be said of the files.
        rows: Their pixels; None for images that stay on disk.
    """

    folder: Path
    paths: list[Path]
    labels: list[int]
    about: dict[str, Any]
    rows: np.ndarray | None = None

    def some(self, keep: Sequence[int]) -> "_Part":
        paths, labels = [self.paths[i] for i in keep], [self.labels[i] for i in keep]
        rows = None if self.rows is None else self.rows[keep]
        return self._replace(paths=paths, labels=labels, rows=rows)


@dataset("folder", reads=("image_size", "test_share", "class_order", "skip_bad"))
def folder(source: Source) -> DataSplits:
    """Images of your own: ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``).

    The parts may also be called ``training``, ``testing``, ``valid`` or ``validation``, with
    capitals or without. Pictures in other folders beside them are counted as left out.

    Folders ``<class>/*`` alone are divided: a stratified share ``test_share`` of the images, always
    the same ones, is the test part. Images may lie in folders within a class. Every image becomes
    RGB as it looks (see ``decode``): the central square scaled to ``image_size``. If both parts
    take at most 2 GiB decoded, they are held in memory, and kept on disk for the next start; the
    fingerprint covers pixels and labels. Otherwise images stay on disk and ``load`` gives the same
    square; the fingerprint then covers relative paths, file sizes and labels, so a file replaced by
    another of equal length is not noticed. Mean and standard deviation are those of ImageNet.

    Args:
        source: The root holds the parts. ``image_size`` is the side in pixels, 8..1024, 32 by
            default.

    Raises:
        SettingError: The folders were not found, or the size is out of range.
        DataError: The parts have different classes, a class is empty, or files are damaged.
    """
    side = DEFAULT_SIDE if source.image_size is None else source.image_size
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise SettingError("data.image_size", side, f"a whole number {MIN_SIDE}..{MAX_SIDE}")
    places = _places(source)
    classes = order_classes(_common_classes(places), source.class_order)
    parts = [_examples(place, classes) for place in places]
    parts[0] = _with_unused(parts[0], cast(Path, source.root), places)
    parts, look = _read(parts, source, side)
    if len(parts) == 1:
        parts = _divided(parts[0], source, classes)
    for part in parts:
        _check_classes(part, classes)
    train, test = (_image_set(part, classes, look) for part in parts)
    return DataSplits(train, test)


def _places(source: Source) -> list[Path]:
    """The training and the test part, or the one folder that is to be divided."""
    root = source.root
    what = "train/<class>/* and test/<class>/* (or val/<class>/*), or <class>/*"
    if root is None or not root.is_dir():
        raise missing(source, what)
    found, test = _part_folder(root, TRAIN_NAMES), _part_folder(root, TEST_NAMES)
    # Classes may be called "valid" and "invalid", so that other spellings count in pairs alone.
    plain = first_existing(root / name for name in ("train", "test", "val"))
    if plain is None and (found is None or test is None):
        if not _class_names(root):
            raise missing(source, what)
        return [root]
    train = found or find_file([root / "train"], source, what)
    if test is None and source.test_share is not None:
        return [train]
    test = test or find_file([root / name for name in TEST_NAMES], source, what)
    if source.test_share is not None:
        raise SettingError("data.test_share", source.test_share, f"none: there is {test}")
    return [train, test]


def _part_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a part, by the first of its names that there is."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return next((path for name in names for path in folders if path.name.lower() == name), None)


def _with_unused(part: _Part, root: Path, places: Sequence[Path]) -> _Part:
    """The training part, which also tells of pictures in folders beside the parts."""
    if root in places:
        return part
    beside = sorted(root / name for name in _class_names(root) if root / name not in places)
    counts = {f"in {path.name}/": len(find_pictures(path).pictures) for path in beside}
    left = {**part.about.get("left_out", {}), **{name: n for name, n in counts.items() if n}}
    return part._replace(about={**part.about, "left_out": left} if left else part.about)


def _common_classes(places: Sequence[Path]) -> list[str]:
    names = [_class_names(place) for place in places]
    for place, own, other in ((places[0], names[0], names[-1]), (places[-1], names[-1], names[0])):
        absent = sorted(other - own)
        if absent:
            listing = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise DataError(f"{place} lacks {len(absent)} class(es) of the other part: {listing}")
    if not names[0]:
        raise DataError(f"{places[0]} has no class folders")
    return sorted(names[0])


def _class_names(place: Path) -> set[str]:
    if not place.is_dir():
        raise DataError(f"{place} is not a folder")
    return {path.name for path in place.iterdir() if path.is_dir() and not made_by_tools(path.name)}


def _examples(place: Path, classes: Sequence[str]) -> _Part:
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        found = find_pictures(place / name)
        others += found.others
        if not found.pictures:
            left = f"; it has {told(found.others)}" if found.others else ""
            raise DataError(f"{place / name} has no images ({', '.join(sorted(readable()))}){left}")
        paths += found.pictures
        labels += [label] * len(found.pictures)
    # Also links to nowhere, which may have been classes.
    names = (path.name for path in place.iterdir() if not path.is_dir())
    loose = sum(1 for name in names if not made_by_tools(name))
    if loose:
        others["outside the class folders"] = loose
    return _Part(place, paths, labels, {"left_out": dict(others)} if others else {})


def _read(parts: Sequence[_Part], source: Source, side: int) -> tuple[list[_Part], Look]:
    """The parts without bad files, with their pixels if they fit in memory; how they are read."""
    paths = [path for part in parts for path in part.paths]
    in_memory = len(paths) * 3 * side * side <= MEMORY_LIMIT
    look = Look(source.background, side=side)
    make = partial(_decode if in_memory else _look_at, paths, look, source)
    what = "pixels" if in_memory else f"whole files {source.skip_bad}"
    found = kept(paths, look, what, source.cache_gib, make)
    if not source.skip_bad:
        refuse(found.bad, "; data.on_error=skip leaves them out")
    read, start = list[_Part](), 0
    for part in parts:
        here = range(start, start + len(part.paths))
        rows = found.pixels[here.start : here.stop] if in_memory else None
        bad = [str(paths[i].relative_to(part.folder)) for i in here if i in found.bad]
        about = {**part.about, "unreadable": bad} if bad else part.about
        good = [i - start for i in here if i not in found.bad]
        read.append(part._replace(rows=rows, about=about).some(good))
        start = here.stop
    return read, look._replace(white=found.white)


def _decode(paths: Sequence[Path], look: Look, source: Source) -> Decoded:
    white = white_of(deep_files(paths), str(source.root))
    square = partial(centre_square, side=cast(int, look.side))
    pixels, bad = decode(paths, cast(int, look.side), look._replace(white=white), square)
    return Decoded(pixels, bad, white)


def _look_at(paths: Sequence[Path], look: Look, source: Source) -> Decoded:
    """The same for images that stay on disk: bad ones are found by their beginnings.

    Where they are to be left out they are decoded, since a training may not end at one.
    """
    white = white_of(deep_files(paths), str(source.root))

    def use(index: int) -> None:
        if source.skip_bad:
            open_rgb(paths[index], look._replace(white=white))
        else:
            check_header(paths[index])

    return Decoded(np.empty((0, 3, 1, 1), np.uint8), each(paths, use), white)


def _divided(part: _Part, source: Source, classes: Sequence[str]) -> list[_Part]:
    share = TEST_SHARE if source.test_share is None else source.test_share
    train, test = hold_out(np.array(part.labels), share, str(source.root), classes)
    about = {**part.about, "files": len(part.paths), "test_share": share}
    return [
        part.some(train.tolist())._replace(about=about),
        part.some(test.tolist())._replace(about={}),
    ]


def _check_classes(part: _Part, classes: Sequence[str]) -> None:
    """DataError if no image of a class could be read."""
    gone = sorted(set(range(len(classes))) - set(part.labels))
    if gone:
        raise DataError(f"{part.folder}: no image of class '{classes[gone[0]]}' can be read")


def _image_set(part: _Part, classes: Sequence[str], look: Look) -> ImageSet:
    about = {"files": len(part.paths), **part.about}
    if part.rows is not None:
        return replace(image_set(part.rows, part.labels, classes, MEAN, STD), about=about)
    side, digest = cast(int, look.side), hashlib.sha256(repr(look).encode())
    for path, label in zip(part.paths, part.labels, strict=True):
        name = path.relative_to(part.folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0{label}\n".encode(errors="surrogateescape"))
    return ImageSet(
        images=FolderImages(part.paths, look, side),
        targets=torch.tensor(part.labels),
        classes=tuple(classes),
        mean=MEAN,
        std=STD,
        fingerprint=digest.hexdigest(),
        size=(3, side, side),
        about=about,
    )
