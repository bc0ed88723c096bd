"""Images without labels: the rest of the training set, some of it, or a folder of pictures."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fskd.data.datasets.listing import find_pictures, told
from fskd.data.pictures import Crops, cropped, held_in_memory, indexed, pictures
from fskd.errors import SettingError
from fskd.types import ImageSet

N_NAMED = 3


class Unlabelled(NamedTuple):
    """Images without labels.

    Attributes:
        source: Images; every target is -1, normalised as the training images are.
        subset: Positions of those that are seen, int64 (n,).
        origin: Where they are from, in words.
        note: A line about files that were left out; empty if none were.
    """

    source: ImageSet
    subset: Tensor
    origin: str
    note: str = ""


def from_training(train: ImageSet, left: Tensor, asked: str | int) -> Unlabelled:
    """Training images that are neither in the subset nor for validation.

    Args:
        train: The training images.
        left: Positions of the images that are left, in the order of the ranking.
        asked: How many, or ``rest`` for all.

    Raises:
        SettingError: If there are not that many.
    """
    if not len(left):
        accepted = "a smaller subset: all training images are in it or in data.val"
        raise SettingError("data.unlabelled", asked, accepted)
    if isinstance(asked, int) and asked > len(left):
        accepted = f"at most {len(left)}, the training images outside the subset and data.val"
        raise SettingError("data.unlabelled", asked, accepted)
    subset = left if isinstance(asked, str) else left[:asked]
    hidden = torch.full_like(train.targets, -1)
    return Unlabelled(replace(train, targets=hidden), subset, "of the training set")


def from_images(images: Tensor, train: ImageSet) -> Unlabelled:
    """Images in memory.

    Args:
        images: uint8 (N, C, H, W).
        train: The training images, of the same size.

    Raises:
        SettingError: If they have another size.
    """
    if tuple(images.shape[1:]) != train.size:
        found, size = ("x".join(map(str, shape)) for shape in (images.shape[1:], train.size))
        raise SettingError("unlabelled", f"{found} images", f"images of {size}, like the data")
    return _all_of(images, train, "handed over")


def from_folder(
    folder: str,
    train: ImageSet,
    seed: int,
    root: Path | None = None,
    background: str = "white",
) -> Unlabelled:
    """One crop of every picture in a folder and the folders in it.

    A crop has the shape of the training images and between half and all of the largest such crop's
    height; size and place are drawn from (seed, index). Crops are held in memory, or cut when asked
    for if the training images lie on disk or the crops would take more than 2 GiB.

    Args:
        folder: The folder.
        train: The training images, of 1 or 3 channels.
        seed: Seed of the crops.
        root: Where the data lie; their test part is refused.
        background: Colour behind transparent pixels.

    Raises:
        SettingError: If there is no such folder, it holds no picture that can be read, or some are
            the data's test images.
    """
    files = pictures(folder, root, train.classes)
    if train.size[0] not in (1, 3):
        accepted = f"no folder, since the images have {train.size[0]} channels"
        raise SettingError("data.unlabelled", f"'{folder}'", accepted)
    cut = cropped if held_in_memory(files, train) else indexed
    images, bad = cut(files, train.size, seed, background)
    if not len(images):
        raise SettingError("data.unlabelled", f"'{folder}'", "a folder with images that are whole")
    names = ", ".join(str(path) for path in bad[:N_NAMED]) + (", ..." * (len(bad) > N_NAMED))
    others = find_pictures(Path(folder).expanduser()).others
    notes = [f"left out: {told(others)}"] if others else []
    if bad:
        notes.append(f"{len(bad)} of {len(files)} files cannot be read and are left out: {names}")
    origin = f"crops of pictures in {folder}"
    return _all_of(images, train, origin)._replace(note="; ".join(notes))


def _all_of(images: Tensor | Crops, train: ImageSet, origin: str) -> Unlabelled:
    hidden = torch.full((len(images),), -1, dtype=torch.int64)
    source = replace(train, images=images, targets=hidden, fingerprint="")
    return Unlabelled(source, torch.arange(len(images)), origin)
