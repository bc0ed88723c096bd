"""Images that are in memory already: arrays, tensors or any map-style dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fskd.data.datasets.base import CHUNK, channel_stats, check_splits, image_set
from fskd.data.datasets.decode import to_rgb
from fskd.data.datasets.files import one_line
from fskd.errors import DataError
from fskd.types import DataSplits

_CHANNELS = (1, 3)
_TEST_SHARE = 0.25
_MAX_LABEL = 1 << 31


def from_arrays(
    train: Any, test: Any = None, *, classes: Sequence[str] | None = None, name: str = "arrays"
) -> DataSplits:
    """Makes a data set from images in memory.

    Each part is a pair (images, labels) or a map-style dataset that yields (image, label) and has a
    length. Images are uint8, or floats in [0, 1] that are rounded to uint8; their shape is
    (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3. Images of a map-style dataset are the
    same without N, or PIL images. Mean and standard deviation are those of the training images.

    Args:
        train: Images to train on.
        test: Images to test on; by default a stratified quarter of ``train``, always the same one.
        classes: Names of the K classes; by default "0" to "K-1", and then each class must occur in
            ``train``.
        name: Name of the data, used in messages.

    Raises:
        DataError: Images or labels are not as described; the message says in which part.

    Example:
        >>> images = np.zeros((8, 4, 4), np.uint8)
        >>> [len(part) for part in from_arrays((images, [0, 1] * 4))]
        [6, 2]
    """
    images, labels = _examples(train, f"{name}, train part")
    if classes is None:
        classes = _class_names(labels, name)
    if test is None:
        kept, held_out = _stratified_quarter(labels, name)
        test_images, test_labels = images[held_out], labels[held_out]
        images, labels = images[kept], labels[kept]
    else:
        test_images, test_labels = _examples(test, f"{name}, test part")
    mean, std = channel_stats(images)
    splits = DataSplits(
        image_set(images, labels, classes, mean, std),
        image_set(test_images, test_labels, classes, mean, std),
    )
    check_splits(splits, name)
    return splits


def _examples(part: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, C, H, W) and int64 labels (N,), N >= 1, copied."""
    if not isinstance(part, tuple):
        part = _collect(part, where)
    if len(part) != 2:
        raise DataError(f"{where}: expected a pair (images, labels), not {len(part)} values")
    images, labels = _plain(part[0], where, "images"), _plain(part[1], where, "labels")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{where}: labels are {labels.dtype} {labels.shape}, not whole numbers (N,)"
        )
    if images.ndim not in (3, 4):
        raise DataError(f"{where}: images are {images.shape}, not (N, H, W), (N, H, W, C) or so")
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
    if images.size == 0:
        raise DataError(f"{where}: there are no images")
    if labels.min() < 0 or labels.max() >= _MAX_LABEL:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where}: label {wrong} is not in 0..K-1")
    return _to_uint8(_channels_second(images, where), where), labels.astype(np.int64)


def plain_images(images: Any, where: str) -> np.ndarray:
    """Images without labels, an array, a tensor or PIL images, as uint8 (N, C, H, W), copied.

    Args:
        images: As the images of ``from_arrays``.
        where: What they are, for messages.

    Raises:
        DataError: If they are not as described.
    """
    if isinstance(images, list) and images and isinstance(images[0], Image.Image):
        images = [_plain_image(image, where) for image in images]
    plain = _plain(images, where, "images")
    if plain.ndim not in (3, 4) or plain.size == 0:
        raise DataError(f"{where}: images are {plain.shape}, not (N, H, W), (N, H, W, C) or so")
    return _to_uint8(_channels_second(plain, where), where)


def _collect(part: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a map-style dataset item by item."""
    try:
        pairs = [part[index] for index in range(len(part))]
        images = [_plain_image(image, where) for image, _ in pairs]
        labels = [int(label) for _, label in pairs]
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
    return stacked, np.array(labels, dtype=np.int64)


def _plain_image(image: Any, where: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("L") if image.mode in ("1", "L") else to_rgb(image))
    return _plain(image, where, "an image")


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
        raise DataError(
            f"{where}: images are {images.shape}; {problem} could be 1 or 3 channels, "
            "expected (N, C, H, W) or (N, H, W, C)"
        )
    return images if second else images.transpose(0, 3, 1, 2)


def _to_uint8(images: np.ndarray, where: str) -> np.ndarray:
    """A copy as uint8; floats in [0, 1] are rounded to the nearest of 256 levels."""
    if images.dtype == np.uint8:
        return np.array(images, order="C")
    if images.dtype.kind != "f":
        raise DataError(f"{where}: images are {images.dtype}, not uint8 or floats in [0, 1]")
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), CHUNK):
        rows = images[start : start + CHUNK].astype(np.float64)
        low, high = rows.min(), rows.max()
        # NaN compares as false, so it is refused as well.
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{where}: images range from {low:.4g} to {high:.4g}; floats must be in [0, 1], "
                "without NaN and before normalisation"
            )
        pixels[start : start + CHUNK] = np.rint(rows * 255)
    return pixels


def _class_names(labels: np.ndarray, name: str) -> list[str]:
    known = np.unique(labels)
    gaps = np.flatnonzero(known != np.arange(len(known)))
    if len(gaps):
        raise DataError(
            f"{name}: class {gaps[0]} has no training image; labels must be 0..K-1 without gaps"
        )
    return [str(label) for label in known]


def _stratified_quarter(labels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    try:
        kept, held_out = train_test_split(
            np.arange(len(labels)), test_size=_TEST_SHARE, stratify=labels, random_state=0
        )
    except ValueError as error:
        raise DataError(f"{name}: no test part can be split off: {one_line(error)}") from error
    return kept, held_out
