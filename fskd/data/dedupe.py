"""Test images that are also, or nearly, in the training set.

Two images are exact copies if their pixels are equal. Their distance is 1 - r, where r is Pearson's
correlation of their grey values, averaged to at most 32x32: 0 for copies that differ in brightness
and contrast alone, about 1 for unrelated images. Memory is bounded by one block of distances.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.errors import SettingError
from fskd.types import DataSplits, ImageSet

SIDE = 32
MAX_PAIRS = 1_000_000
BLOCK = 512  # test images at a time; with 60,000 training images 123 MB of distances


class Pairs(NamedTuple):
    """Pairs of a test and a training image, nearest first.

    Attributes:
        test: Positions in the test set, int64 (P,).
        train: Positions in the training set, int64 (P,).
        distance: 1 - correlation, float32 (P,); 0 for exact copies.
        exact: Whether the pixels are equal, bool (P,).
    """

    test: Tensor
    train: Tensor
    distance: Tensor
    exact: Tensor


def near_duplicates(data: DataSplits, threshold: float) -> Pairs:
    """All pairs of a test and a training image at a distance of at most ``threshold``.

    Args:
        data: Both parts.
        threshold: Largest distance, in [0, 2].

    Raises:
        SettingError: If there are more than a million pairs.
    """
    train, test = descriptors(data.train), descriptors(data.test)
    hashes = [list(_hashes(part)) for part in (data.train, data.test)]
    where: dict[bytes, list[int]] = {}
    for i, digest in enumerate(hashes[0]):
        where.setdefault(digest, []).append(i)
    found = {(i, j): 0.0 for i, digest in enumerate(hashes[1]) for j in where.get(digest, ())}
    exact = set(found)
    for start in range(0, len(test), BLOCK):
        distance = 1 - test[start : start + BLOCK] @ train.T
        for i, j in (distance <= threshold).nonzero()[: MAX_PAIRS + 1].tolist():
            found.setdefault((start + i, j), max(float(distance[i, j]), 0.0))
        if len(found) > MAX_PAIRS:
            raise SettingError("--threshold", threshold, "less: that is a million pairs")
    pairs = sorted(found, key=lambda pair: (found[pair], pair))
    positions = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Pairs(
        positions[:, 0],
        positions[:, 1],
        torch.tensor([found[pair] for pair in pairs], dtype=torch.float32),
        torch.tensor([pair in exact for pair in pairs], dtype=torch.bool),
    )


def descriptors(images: ImageSet) -> Tensor:
    """Grey values with mean 0 and length 1, float32 (N, pixels); zeros for a plain image."""
    parts = []
    for grey in _grey(images):
        size = min(grey.shape[-2], SIDE), min(grey.shape[-1], SIDE)
        flat = F.adaptive_avg_pool2d(grey[:, None], size).flatten(1)
        parts.append(F.normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-6))
    return torch.cat(parts)


def _grey(images: ImageSet) -> Iterator[Tensor]:
    """Grey images of equal size, float32 (rows, H, W), in chunks."""
    for part in torch.arange(len(images)).split(1024):
        if isinstance(images.images, Tensor):
            yield images.images[part].float().mean(1)
            continue
        small = (images.images.load(int(i)).convert("L").resize((SIDE, SIDE)) for i in part)
        yield torch.from_numpy(np.stack([np.asarray(x, dtype=np.float32) for x in small]))


def _hashes(images: ImageSet) -> Iterator[bytes]:
    """sha256 of the pixels of every image."""
    for i in range(len(images)):
        if isinstance(images.images, Tensor):
            pixels = images.images[i].numpy().tobytes()
        else:
            picture = images.images.load(i).convert("RGB")
            pixels = repr(picture.size).encode() + picture.tobytes()
        yield hashlib.sha256(pixels).digest()


def to_csv(pairs: Pairs, data: DataSplits) -> str:
    """One line a pair, with both labels."""
    lines = ["test,train,distance,exact,test_label,train_label"]
    for i, j, distance, exact in zip(*(column.tolist() for column in pairs), strict=True):
        labels = f"{int(data.test.targets[i])},{int(data.train.targets[j])}"
        lines.append(f"{i},{j},{distance:.6f},{int(exact)},{labels}")
    return "\n".join(lines) + "\n"


def summary(pairs: Pairs, data: DataSplits, threshold: float) -> list[str]:
    """Lines that say how many test images have a copy, exact or near, and how many labels clash."""
    clash = data.test.targets[pairs.test] != data.train.targets[pairs.train]
    lines = []
    for name, which in (
        ("an exact copy in the training set", pairs.exact),
        (f"an image within {threshold:g} of it in the training set", pairs.exact.new_tensor(True)),
    ):
        test = pairs.test[which.expand(len(pairs.test))]
        wrong = pairs.test[which & clash]
        share = len(test.unique()) / len(data.test)
        lines.append(
            f"{len(test.unique())} of {len(data.test)} test images ({100 * share:.2f} %) have"
            f" {name}"
            f" ({len(test)} pairs), {len(wrong.unique())} of them with another label"
        )
    return lines
