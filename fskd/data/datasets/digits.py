"""Handwritten digits that come with fskd: 8x8 pixels, ready without a download."""

import hashlib
import io
from pathlib import Path

import numpy as np

from fskd.data.datasets.base import Source, channel_stats, dataset, image_set
from fskd.errors import DataError
from fskd.types import DataSplits

FILE = Path(__file__).with_name("digits.npz")
SHA256 = "4754d71623b79ab7bfd0f568e40cdc84ee79ceafb85c80290515f3a7705fb709"


@dataset("digits")
def digits(source: Source) -> DataSplits:
    """1,797 handwritten digits of 8x8 pixels, shipped with fskd (E. Alpaydin, C. Kaynak).

    Intensities 0..16 are stored as 0..240 (times 15), which keeps every level. There is no
    official test part here, so a stratified third, always the same one, is set aside: 1,198 images
    to train on and 599 to test on. Mean and standard deviation are those of the training images.

    Args:
        source: Not used; the images are part of fskd. ``digits.txt`` says where they are from.

    Raises:
        DataError: The file was changed.
    """
    raw = _arrays(FILE)
    images, labels, train, test = (raw[name] for name in ("images", "labels", "train", "test"))
    pixels = (images * 15)[:, None]
    mean, std = channel_stats(pixels[train])
    classes = [str(digit) for digit in range(10)]
    return DataSplits(
        image_set(pixels[train], labels[train], classes, mean, std),
        image_set(pixels[test], labels[test], classes, mean, std),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); install fskd anew") from None
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise DataError(f"{path}: sha256 is {found}, not {SHA256}; install fskd anew")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)
