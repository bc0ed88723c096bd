"""Handwritten digits that come with scikit-learn: 8x8 pixels, ready without a download."""

import numpy as np

from fskd.data.datasets.base import Source, channel_stats, dataset, image_set
from fskd.types import DataSplits


@dataset("digits")
def digits(source: Source) -> DataSplits:
    """1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn (E. Alpaydin, C. Kaynak).

    Intensities 0..16 are stored as 0..240 (times 15), which keeps every level. There is no
    official test part here, so a stratified third with a fixed seed is set aside: 1,198 images to
    train on and 599 to test on. Mean and standard deviation are those of the training images.

    Args:
        source: Not used; the images are part of scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = (raw.images * 15).astype(np.uint8)[:, None]
    train, test = train_test_split(
        np.arange(len(images)), test_size=1 / 3, stratify=raw.target, random_state=0
    )
    mean, std = channel_stats(images[train])
    classes = [str(digit) for digit in range(10)]
    return DataSplits(
        image_set(images[train], raw.target[train], classes, mean, std),
        image_set(images[test], raw.target[test], classes, mean, std),
    )
