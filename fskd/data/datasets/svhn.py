"""SVHN: colour images of house numbers, cropped to one digit, 32x32."""

from pathlib import Path

import numpy as np

from fskd.data.datasets.base import Extent, Source, dataset, image_set
from fskd.data.datasets.files import fetch, find_file, one_line
from fskd.data.datasets.recipes import crd_recipe
from fskd.errors import DataError
from fskd.types import DataSplits, ImageSet

MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


@dataset(
    "svhn", defaults=crd_recipe(73_257, flip=False), extent=Extent(73_257, 26_032, 10, (3, 32, 32))
)
def svhn(source: Source) -> DataSplits:
    """73,257 training and 26,032 test images of house numbers, 32x32 colour, 10 digits.

    Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011,
    format 2. The files call the digit 0 "10"; here it is class 0. The part "extra" is not used.

    Args:
        source: The root holds ``train_32x32.mat`` and ``test_32x32.mat``.

    Raises:
        SettingError: The files were not found.
        DataError: A file is damaged or a download failed.
    """
    places = [source.root] if source.root else []
    names = ("train_32x32.mat", "test_32x32.mat")
    if source.download and not all((place / name).exists() for place in places for name in names):
        fetch("svhn", source, _download)
    train, test = (
        find_file([place / name for place in places], source, f"SVHN's {name}") for name in names
    )
    return DataSplits(_read(train), _read(test))


def _download(root: Path) -> None:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    for part in ("train", "test"):
        url, name, md5 = SVHN.split_list[part]
        download_url(url, root, name, md5)


def _read(path: Path) -> ImageSet:
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = content["X"], content["y"].reshape(-1)
    except KeyError as error:
        raise DataError(f"{path} lacks the variable {error}") from error
    except Exception as error:  # scipy fails in many ways on a damaged file.
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, N)")
    if images.shape[3] != len(labels):
        raise DataError(f"{path}: {images.shape[3]} images but {len(labels)} labels")
    if not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"{path}: labels must be whole numbers from 1 to 10")
    classes = [str(digit) for digit in range(10)]
    targets = labels.astype(np.int64) % 10
    return image_set(images.transpose(3, 2, 0, 1), targets, classes, MEAN, STD)
