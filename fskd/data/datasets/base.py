"""What a data set is: a reader registered under a name that returns a train and a test part.

A data set is one file of this package with one function::

    @dataset("cifar10", defaults={"student": "resnet20"})
    def cifar10(source: Source) -> DataSplits: ...

Readers print nothing and fail with one line: SettingError where a setting can repair it, DataError
where the files are damaged. scipy, scikit-learn and torchvision are imported on first use only.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fskd.errors import DataError, SettingError
from fskd.registry import Registry
from fskd.types import DataSplits, ImageSet, LazyImages

# Rows handled at once where a step needs wider numbers than uint8: bounds the extra memory.
CHUNK = 4096


class Source(NamedTuple):
    """Where a reader finds its files and how it reads them.

    Attributes:
        root: Folder (or file) of the data; None for the places a reader knows by itself.
        image_size: Side of the square images in pixels; only for sets whose images vary in size.
        download: Whether missing files may be fetched into ``root``.
        test_share: Share of the images that is set aside where there is no test part; a quarter if
            None.
        class_order: Order of class names, see ``fskd.data.labels``.
        background: Colour behind transparent images.
        skip_bad: Whether files that cannot be read are left out, rather than refused.
        cache_gib: Room for decoded images on disk; none is used with 0.
    """

    root: Path | None = None
    image_size: int | None = None
    download: bool = False
    test_share: float | None = None
    class_order: str = "natural"
    background: str = "white"
    skip_bad: bool = False
    cache_gib: float = 0.0


NOT_FOR_ALL = {
    "image_size": ("image_size", "images of {} have a fixed size"),
    "test_share": ("test_share", "{} has a test part"),
    "class_order": ("class_order", "the classes of {} have a fixed order"),
    "skip_bad": ("on_error", "{} is not read from a folder of pictures"),
}
"""Field of ``Source`` -> its setting, and why it may not be given."""


class Extent(NamedTuple):
    """How large a published data set is, for plans made where its files are not.

    Attributes:
        n_train: Training images.
        n_test: Test images.
        num_classes: K.
        size: (C, H, W).
    """

    n_train: int
    n_test: int
    num_classes: int
    size: tuple[int, int, int]


class Reader(Protocol):
    """A registered data set.

    Attributes:
        defaults: Run settings that suit the data set, nested as in a run configuration.
        reads: Fields of ``Source`` that have a meaning here, of those that not all readers use.
        extent: How large it is; None where the files decide.
    """

    defaults: Mapping[str, Any]
    reads: Sequence[str]
    extent: Extent | None

    def __call__(self, source: Source) -> DataSplits:
        """Reads both parts."""


datasets: Registry[Reader] = Registry("dataset", "fskd.data.datasets")


def dataset(
    name: str,
    defaults: Mapping[str, Any] | None = None,
    *,
    reads: Sequence[str] = (),
    extent: Extent | None = None,
) -> Callable[[Callable[[Source], DataSplits]], Reader]:
    """Decorator that registers a reader and attaches what is known about its data set.

    Args:
        name: Registry name, lower case.
        defaults: Run settings that suit the data set; none if omitted.
        reads: What the reader uses of ``NOT_FOR_ALL``.
        extent: How large the data set is; None where the files decide.
    """

    def add(function: Callable[[Source], DataSplits]) -> Reader:
        reader = cast(Reader, function)
        reader.defaults = dict(defaults or {})
        reader.reads = tuple(reads)
        reader.extent = extent
        return datasets.register(name)(reader)

    return add


def load(name: str, source: Source | None = None) -> DataSplits:
    """Reads the data set registered under ``name`` and checks what its reader returned.

    Args:
        name: Registry name.
        source: Where the files are; by default the places the reader knows by itself.

    Raises:
        SettingError: The name is unknown, the files are not where the settings say, or something is
            asked for that has no meaning here, such as a size of images that have a fixed one.
        DataError: The files are damaged, or the parts do not fit together.

    Example:
        >>> [len(part) for part in load("digits")]
        [1198, 599]
    """
    reader, source = datasets.get(name), source or Source()
    for field, (setting, why) in NOT_FOR_ALL.items():
        value = getattr(source, field)
        if field not in reader.reads and value != Source._field_defaults[field]:
            raise SettingError(f"data.{setting}", value, f"no value: {why.format(name)}")
    if source.root is not None:
        source = source._replace(root=Path(source.root).expanduser())
    splits = reader(source)
    check_splits(splits, name)
    return splits


def image_set(
    images: Tensor | np.ndarray,
    targets: Tensor | np.ndarray | Sequence[int],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> ImageSet:
    """Images in memory with their fingerprint.

    Args:
        images: uint8 (N, C, H, W).
        targets: Integers in [0, K), (N,).
        classes: K names.
        mean: Mean of each channel of the images scaled to [0, 1], (C,).
        std: Standard deviation on the same scale, (C,).
    """
    pixels = torch.as_tensor(np.ascontiguousarray(images))
    labels = torch.as_tensor(np.asarray(targets)).to(torch.int64)
    _, channels, height, width = pixels.shape
    return ImageSet(
        images=pixels,
        targets=labels,
        classes=tuple(classes),
        mean=tuple(mean),
        std=tuple(std),
        fingerprint=fingerprint(pixels, labels),
        size=(channels, height, width),
    )


def fingerprint(*arrays: Tensor | np.ndarray) -> str:
    """sha256 over dtype, shape and bytes of every array, in hexadecimal.

    Bytes are taken in C order and little-endian, so the value does not depend on the machine.

    Example:
        >>> fingerprint(np.zeros(2, np.uint8)) == fingerprint(np.zeros((2, 1), np.uint8))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array)
        plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{plain.dtype.str}{plain.shape}".encode())
        digest.update(plain.data)
    return digest.hexdigest()


def channel_stats(images: Tensor | np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, both on the scale where 255 is 1.

    Values are counted first, so the result is exact whatever the order of the images. A constant
    channel gets a standard deviation of 1, which keeps normalised pixels finite.

    Args:
        images: uint8 (N, C, H, W), N >= 1.

    Returns:
        Mean (C,) and standard deviation (C,).
    """
    pixels = np.asarray(images)
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for start in range(0, len(pixels), CHUNK):
        for channel, row in enumerate(counts):
            row += np.bincount(pixels[start : start + CHUNK, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.where(np.count_nonzero(counts, axis=1) > 1, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def check_splits(splits: DataSplits, name: str) -> None:
    """Checks that both parts are sound and belong together.

    Args:
        splits: What a reader returned.
        name: Name of the data set, used in messages.

    Raises:
        DataError: A part is empty, has other images, labels or statistics than ``ImageSet``
            promises, or the parts differ in classes or image size.
    """
    for part, images in zip(("train", "test"), splits, strict=True):
        problem = _count_problem(images) or _image_problem(images) or _target_problem(images)
        if problem:
            raise DataError(f"{name}, {part} part: {problem}")
    if splits.train.classes != splits.test.classes:
        raise DataError(f"{name}: the train and test parts have different classes")
    if splits.train.size != splits.test.size:
        raise DataError(
            f"{name}: train images are {splits.train.size} and test images {splits.test.size}"
        )


def _count_problem(part: ImageSet) -> str:
    if len(part.images) == 0:
        return "there are no images"
    if len(part.images) != len(part.targets):
        return f"{len(part.images)} images but {len(part.targets)} labels"
    return ""


def _image_problem(part: ImageSet) -> str:
    if isinstance(part.images, Tensor):
        if part.images.dtype != torch.uint8:
            return f"images are {part.images.dtype}, not uint8"
        if tuple(part.images.shape[1:]) != part.size:
            return f"images are {tuple(part.images.shape[1:])}, not {part.size}"
    elif not isinstance(part.images, LazyImages):
        return f"images are {type(part.images).__name__}, neither a tensor nor LazyImages"
    if not len(part.mean) == len(part.std) == part.size[0]:
        return f"mean and std need {part.size[0]} values, one per channel"
    if min(part.std) <= 0:
        return "std must be positive"
    return ""


def _target_problem(part: ImageSet) -> str:
    targets = part.targets
    if targets.dtype != torch.int64 or targets.dim() != 1:
        return f"labels are {targets.dtype} {tuple(targets.shape)}, not int64 (N,)"
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= part.num_classes:
        wrong = low if low < 0 else high
        return f"label {wrong} is outside 0..{part.num_classes - 1}"
    return ""
