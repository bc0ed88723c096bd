"""Fashion-MNIST: 70,000 grey images of clothes, 28x28."""

from pathlib import Path

from fskd.data.datasets.base import Extent, Source, dataset
from fskd.data.datasets.idx import read_mnist_like
from fskd.types import DataSplits

# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataset(
    "fashion_mnist",
    defaults={"teacher": {"budget": {"epochs": 6}}},
    extent=Extent(60_000, 10_000, 10, (1, 28, 28)),
)
def fashion_mnist(source: Source) -> DataSplits:
    """60,000 training and 10,000 test images of clothes, 28x28 grey, 10 classes.

    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.

    Args:
        source: The root holds the four IDX files, plain or with the suffix ``.gz``, directly or in
            ``FashionMNIST/raw``. Debian's package ``dataset-fashion-mnist`` is found without one.

    Raises:
        SettingError: The files were not found.
        DataError: A file is damaged or a download failed.
    """
    return read_mnist_like(source, "FashionMNIST", CLASSES, 0.2860, 0.3530, (DEBIAN,))
