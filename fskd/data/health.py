"""What makes results on a data set doubtful: copies, leaks, and classes without images.

Pictures are compared by all of their pixels, but only those that are alike in a quick checksum.
"""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fskd.types import DataSplits, ImageSet

MAX_ROWS = 100_000
CHUNK = 4096
MAX_WORDS = 64
# Of 255: images of 0 and 1, of 4 bits, or divided by 255 twice are not brighter.
DARK = 16

# A share and a number, so that neither a stray copy nor a small data set raises a doubt.
SAME, MIN_SAME = 0.1, 10
COPIES, MIN_COPIES = 0.01, 2


class _Rows(NamedTuple):
    """Some of the images of a part."""

    source: ImageSet
    positions: Tensor

    @property
    def targets(self) -> np.ndarray:
        return self.source.targets[self.positions].numpy()


def doubts(data: DataSplits, subset: Tensor | None = None) -> list[str]:
    """Whatever makes results on these data doubtful, in one line each; nothing for sound data.

    Of more than 100,000 images an evenly spaced sample of as many is looked at. Images that stay on
    disk are not read: two of them are the same picture if they are the same file.

    Args:
        data: Both parts.
        subset: Positions of the training images that are used, int64 (n,); all by default. Copies
            in the test part and under other labels are looked for in all, as a teacher sees them.

    Example:
        >>> from fskd.data.datasets.base import load
        >>> doubts(load("digits"))
        []
    """
    part = "training" if subset is None else "sampled training"
    train, test = _rows(data.train), _rows(data.test)
    used = train if subset is None else _rows(data.train, subset)
    shown = _pictures([train, test] if subset is None else [train, test, used])
    return [
        *_one_class(data.train),
        *_alike(data.train.classes),
        *_few_pictures(shown[0 if subset is None else 2], part),
        *(_plain(used, part) or _dark(used, part)),
        *_absent(data.train, subset, part),
        *_absent(data.test, None, "test"),
        *_leaks(shown[0], shown[1]),
        *_clashes(shown[0], train.targets),
    ]


def _rows(part: ImageSet, positions: Tensor | None = None) -> _Rows:
    positions = torch.arange(len(part)) if positions is None else positions
    if len(positions) > MAX_ROWS:
        positions = positions[torch.arange(MAX_ROWS) * len(positions) // MAX_ROWS]
    return _Rows(part, positions)


def _one_class(part: ImageSet) -> list[str]:
    if part.num_classes > 1:
        return []
    return [f"the data have one class, '{part.classes[0]}': every answer is right"]


def _alike(classes: Sequence[str]) -> list[str]:
    """Names such as "Cat" and "cat ": probably one class. Single letters may well be two."""
    known: dict[str, str] = {}
    for name in classes:
        bare = unicodedata.normalize("NFKC", " ".join(name.split())).casefold()
        other = known.setdefault(bare, name)
        if other is not name and len(bare) > 1:
            return [f"classes {other!r} and {name!r} differ by case, spaces or encoding alone"]
    return []


def _few_pictures(shown: np.ndarray, part: str) -> list[str]:
    n, most = len(shown), int(np.unique(shown, return_counts=True)[1].max(initial=0))
    if n > 1 and most == n:
        return [f"all {n} {part} images are equal"]
    if most >= MIN_SAME and most > SAME * n:
        return [f"{most} of {n} {part} images are the same picture"]
    return []


def _plain(rows: _Rows, part: str) -> list[str]:
    images = rows.source.images
    if not isinstance(images, Tensor) or rows.source.size[1:] == (1, 1):
        return []
    for chunk in rows.positions.split(CHUNK):
        # One that shows something is enough, and is nearly always the first.
        for few in (chunk[:1], chunk):
            pixels = images[few].flatten(2)
            if bool((pixels != pixels[:, :, :1]).any()):
                return []
    return [f"all {len(rows.positions)} {part} images are plain, of one colour each"]


def _dark(rows: _Rows, part: str) -> list[str]:
    images, top = rows.source.images, 0
    if not isinstance(images, Tensor):
        return []
    for chunk in rows.positions.split(CHUNK):
        for few in (chunk[:1], chunk):
            top = max(top, int(images[few].max()))
            if top > DARK:
                return []
    n = len(rows.positions)
    return [f"all {n} {part} images are nearly black, at most {top} where white is 255"]


def _absent(part: ImageSet, subset: Tensor | None, what: str) -> list[str]:
    targets = part.targets if subset is None else part.targets[subset]
    absent = (targets.bincount(minlength=part.num_classes) == 0).nonzero().flatten().tolist()
    if not absent:
        return []
    first = f"'{part.classes[absent[0]]}'"
    if len(absent) == 1:
        return [f"class {first} has no {what} image"]
    return [f"{len(absent)} of {part.num_classes} classes have no {what} image, such as {first}"]


def _leaks(train: np.ndarray, test: np.ndarray) -> list[str]:
    n = int(np.isin(test, train).sum())
    if n < max(MIN_COPIES, COPIES * len(test)):
        return []
    return [f"{n} of {len(test)} test images are also training images (exact copies)"]


def _clashes(train: np.ndarray, targets: np.ndarray) -> list[str]:
    pairs = np.unique(np.stack([train, targets], 1), axis=0)
    pictures, n_labels = np.unique(pairs[:, 0], return_counts=True)
    n = int(np.isin(train, pictures[n_labels > 1]).sum())
    if n < max(MIN_COPIES, COPIES * len(train)):
        return []
    return [f"{n} of {len(train)} training images are also there under another label"]


def _pictures(parts: Sequence[_Rows]) -> list[np.ndarray]:
    """A number for each image of each part, int64, equal for equal pictures."""
    sums = [_checksums(rows) for rows in parts]
    _, numbers, counts = np.unique(np.concatenate(sums), return_inverse=True, return_counts=True)
    shown = np.split(numbers, np.cumsum([len(part) for part in sums])[:-1])
    known: dict[bytes, int] = {}
    for rows, own in zip(parts, shown, strict=True):
        for i in np.flatnonzero(counts[own] > 1).tolist():
            digest = _digest(rows.source, int(rows.positions[i]))
            own[i] = len(counts) + known.setdefault(digest, len(known))
    return shown


def _checksums(rows: _Rows) -> np.ndarray:
    """uint64 (n,), equal for equal pictures and seldom for others."""
    images = rows.source.images
    if not isinstance(images, Tensor):
        names = [hash(_file(rows.source, i)) for i in rows.positions.tolist()]
        return np.array(names, dtype=np.int64).view(np.uint64)
    pixels = images.flatten(1).numpy()
    chunks = np.array_split(rows.positions.numpy(), 1 + len(rows.positions) // CHUNK)
    return np.concatenate([_word_sums(pixels[chunk]) for chunk in chunks])


def _word_sums(pixels: np.ndarray) -> np.ndarray:
    """Sum of some words of 8 pixels, each times another odd number, modulo 2**64."""
    n_words = pixels.shape[1] // 8
    words = np.ascontiguousarray(pixels[:, : 8 * n_words]).view(np.uint64)
    words = words[:, :: 1 + n_words // MAX_WORDS]
    factors = np.random.default_rng(0).integers(1 << 63, size=words.shape[1], dtype=np.uint64)
    sums: np.ndarray = words @ (2 * factors + 1)
    return sums


def _digest(part: ImageSet, position: int) -> bytes:
    if not isinstance(part.images, Tensor):
        return _file(part, position).encode(errors="surrogateescape")
    return hashlib.blake2b(part.images[position].numpy().tobytes(), digest_size=16).digest()


def _file(part: ImageSet, position: int) -> str:
    """Path of an image that stays on disk; one of its own where that is unknown."""
    paths = getattr(part.images, "paths", None)
    return f"{id(part)}/{position}" if paths is None else os.path.realpath(paths[position])
