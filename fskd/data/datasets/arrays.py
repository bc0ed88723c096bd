"""Images that are in memory already: arrays, tensors or any map-style dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fskd.data.datasets.base import CHUNK, channel_stats, check_splits, image_set
from fskd.data.datasets.decode import to_rgb
from fskd.data.datasets.depth import deep_values, white_of
from fskd.data.datasets.files import one_line
from fskd.data.hold_out import TEST_SHARE, hold_out
from fskd.data.labels import Labels, read_labels
from fskd.errors import DataError, SettingError
from fskd.types import DataSplits

_CHANNELS = (1, 3)


def from_arrays(
    train: Any,
    test: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    test_share: float | None = None,
    class_order: str = "natural",
    background: str = "white",
) -> DataSplits:
    """Makes a data set from images in memory.

    Each part is a pair (images, labels) or a map-style dataset that yields (image, label) and has a
    length. Images are uint8, or floats in [0, 1] that are rounded to uint8; their shape is
    (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3. Images of a map-style dataset are the
    same without N, or PIL images. Labels are whole numbers or names, see ``read_labels``. Mean and
    standard deviation are those of the training images.

    Args:
        train: Images to train on.
        test: Images to test on; by default a stratified share of ``train``, always the same one.
        classes: Names of the K classes; by default those that labels of ``train`` are, or "0" to
            "K-1", and then each class must occur in ``train``.
        name: Name of the data, used in messages.
        test_share: Share of ``train`` to test on if there is no ``test``; a quarter by default.
        class_order: How classes are numbered where labels are names, ``natural`` or ``sorted``,
            see ``order_classes``.
        background: Colour behind transparent pixels of PIL images.

    Raises:
        SettingError: There is no such order, or the share does not fit the data.
        DataError: Images or labels are not as described; the message says in which part.

    Example:
        >>> images = np.zeros((8, 4, 4), np.uint8)
        >>> [len(part) for part in from_arrays((images, [0, 1] * 4))]
        [6, 2]
    """
    images, labels = _examples(train, f"{name}, train part", classes, class_order, background)
    classes = labels.classes or classes or _class_names(labels.targets, name)
    targets = labels.targets
    if test is None:
        kept, held_out = hold_out(targets, test_share, name, classes)
        test_images, test_targets = images[held_out], targets[held_out]
        images, targets = images[kept], targets[kept]
    elif test_share is not None:
        raise SettingError("data.test_share", test_share, "none: the data have a test part")
    else:
        test_images, found = _examples(test, f"{name}, test part", classes, class_order, background)
        _check_same_kind(labels, found, name)
        test_targets = found.targets
    mean, std = channel_stats(images)
    about = {} if test is not None else {"test_share": test_share or TEST_SHARE}
    splits = DataSplits(
        replace(image_set(images, targets, classes, mean, std), about=about),
        image_set(test_images, test_targets, classes, mean, std),
    )
    check_splits(splits, name)
    return splits


def _check_same_kind(train: Labels, test: Labels, name: str) -> None:
    kinds = ["numbers" if part.classes is None else "names" for part in (train, test)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{name}: labels are {kinds[0]} in the train part, {kinds[1]} in the other")


def _examples(
    part: Any, where: str, classes: Sequence[str] | None, order: str, background: str
) -> tuple[np.ndarray, Labels]:
    """uint8 images (N, C, H, W) and labels (N,), N >= 1, copied."""
    if not isinstance(part, tuple):
        part = _collect(part, where, background)
    if len(part) != 2:
        raise DataError(f"{where}: expected a pair (images, labels), not {len(part)} values")
    labels = read_labels(part[1], where, classes=classes, order=order)
    images = _plain(part[0], where, "images")
    if images.ndim not in (3, 4):
        raise DataError(f"{where}: images are {images.shape}, not (N, H, W), (N, H, W, C) or so")
    if len(images) != len(labels.targets):
        raise DataError(f"{where}: {len(images)} images but {len(labels.targets)} labels")
    if images.size == 0:
        raise DataError(f"{where}: there are no images")
    return _to_uint8(_channels_second(images, where), where), labels


def plain_images(images: Any, where: str, background: str = "white") -> np.ndarray:
    """Images without labels, an array, a tensor or PIL images, as uint8 (N, C, H, W), copied.

    Args:
        images: As the images of ``from_arrays``.
        where: What they are, for messages.
        background: Colour behind transparent pixels of PIL images.

    Raises:
        DataError: If they are not as described.
    """
    if isinstance(images, list) and images and isinstance(images[0], Image.Image):
        images = _plain_images(images, where, background)
    plain = _plain(images, where, "images")
    if plain.ndim not in (3, 4) or plain.size == 0:
        raise DataError(f"{where}: images are {plain.shape}, not (N, H, W), (N, H, W, C) or so")
    return _to_uint8(_channels_second(plain, where), where)


def _collect(part: Any, where: str, background: str) -> tuple[np.ndarray, list[Any]]:
    """Reads a map-style dataset item by item."""
    if isinstance(part, DataLoader):
        raise DataError(f"{where}: a DataLoader yields batches; hand over its dataset instead")
    if isinstance(part, IterableDataset):
        raise DataError(f"{where}: an IterableDataset has no positions; hand over list(data)")
    images, labels = [], []
    try:
        for index in range(len(part)):
            image, label = _pair(part[index], index, where)
            images.append(image)
            labels.append(label)
        images = _plain_images(images, where, background)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}: expected (images, labels) or a dataset of (image, label): {one_line(error)}"
        ) from error
    for index, image in enumerate(images):
        if (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise DataError(
                f"{where}: image {index} is {image.dtype} {image.shape}, but image 0 is "
                f"{images[0].dtype} {images[0].shape}"
            )
    stacked = np.stack(images) if images else np.empty((0, 1, 1), np.uint8)
    return stacked, labels


def _pair(item: Any, index: int, where: str) -> tuple[Any, Any]:
    # The keys of a dictionary of two would pass for an image and its label.
    if isinstance(item, Mapping | str):
        kind = type(item).__name__
        raise DataError(f"{where}: item {index} is a {kind}, expected a pair (image, label)")
    image, label = item
    return image, label


def _plain_images(images: Sequence[Any], where: str, background: str) -> list[np.ndarray]:
    """PIL images as they look, others as arrays."""
    values = (deep_values(image) for image in images if isinstance(image, Image.Image))
    white = white_of((found for found in values if found is not None), where)
    return [_plain_image(image, where, background, white) for image in images]


def _plain_image(image: Any, where: str, background: str, white: float) -> np.ndarray:
    if not isinstance(image, Image.Image):
        return _plain(image, where, "an image")
    plain = image.mode in ("1", "L") and "transparency" not in image.info
    try:
        return np.asarray(image.convert("L") if plain else to_rgb(image, background, white))
    except ValueError as error:
        raise DataError(f"{where}: {one_line(error)}") from error


def _plain(values: Any, where: str, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: {what} form no array: {one_line(error)}") from error


def _channels_second(images: np.ndarray, where: str) -> np.ndarray:
    """A view (N, C, H, W); an axis of 1 or 3 decides which one holds the channels."""
    if images.ndim == 3:
        return images[:, None]
    second, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if second == last:
        problem = "both the second and the last axis" if second else "neither axis"
        advice = "expected (N, C, H, W) or (N, H, W, C)"
        if not second and 4 in (images.shape[1], images.shape[3]):
            advice = "if the fourth of 4 channels is opacity, leave it out"
        raise DataError(
            f"{where}: images are {images.shape}; {problem} could be 1 or 3 channels, {advice}"
        )
    return images if second else images.transpose(0, 3, 1, 2)


def _to_uint8(images: np.ndarray, where: str) -> np.ndarray:
    """A copy as uint8; floats in [0, 1] are rounded to the nearest of 256 levels."""
    if images.dtype == np.uint8:
        return np.array(images, order="C")
    if images.dtype.kind != "f":
        raise DataError(
            f"{where}: images are {images.dtype}, not uint8 or floats in [0, 1]{_cure(images)}"
        )
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), CHUNK):
        rows = images[start : start + CHUNK].astype(np.float64)
        low, high = rows.min(), rows.max()
        # NaN compares as false, so it is refused as well.
        if not (low >= 0 and high <= 1):
            cure = ": divide them by 255" if low >= 0 and 2 < high <= 255 else ""
            raise DataError(
                f"{where}: images range from {low:.4g} to {high:.4g}; floats must be in [0, 1], "
                f"without NaN and before normalisation{cure}"
            )
        pixels[start : start + CHUNK] = np.rint(rows * 255)
    return pixels


def _cure(images: np.ndarray) -> str:
    """What to do with images of a type that says nothing about their range."""
    if images.dtype.kind not in "biu":
        return ""
    low, high = int(images.min()), int(images.max())
    if images.dtype.kind == "b":
        return "; use images.astype(np.float32)"
    if low >= 0 and high <= 255:
        return f"; they range from {low} to {high}: use images.astype(np.uint8) if 255 is white"
    return (
        f"; they range from {low} to {high}: divide them by the largest value they may have, such "
        "as 255, 4095 or 65535"
    )


def _class_names(labels: np.ndarray, name: str) -> list[str]:
    known = np.unique(labels)
    gaps = np.flatnonzero(known != np.arange(len(known)))
    if len(gaps):
        cure = " (subtract 1)" if np.array_equal(known, np.arange(len(known)) + 1) else ""
        raise DataError(
            f"{name}: class {gaps[0]} has no training image; labels must be 0..K-1 without gaps"
            f"{cure}"
        )
    return [str(label) for label in known]
