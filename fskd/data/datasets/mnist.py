"""MNIST: 70,000 grey images of handwritten digits, 28x28."""

from fskd.data.datasets.base import Extent, Source, dataset
from fskd.data.datasets.idx import read_mnist_like
from fskd.types import DataSplits


@dataset(
    "mnist",
    defaults={"teacher": {"budget": {"epochs": 6}}},
    extent=Extent(60_000, 10_000, 10, (1, 28, 28)),
)
def mnist(source: Source) -> DataSplits:
    """60,000 training and 10,000 test images of handwritten digits, 28x28 grey, 10 classes.

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE, 1998.

    Args:
        source: The root holds the four IDX files, plain or with the suffix ``.gz``, directly or in
            ``MNIST/raw``.

    Raises:
        SettingError: The files were not found.
        DataError: A file is damaged or a download failed.
    """
    classes = [str(digit) for digit in range(10)]
    return read_mnist_like(source, "MNIST", classes, 0.1307, 0.3081)
