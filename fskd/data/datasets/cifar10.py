"""CIFAR-10: 60,000 colour images in 10 classes, 32x32."""

from fskd.data.datasets.base import Extent, Source, dataset
from fskd.data.datasets.cifar_files import Cifar, Files, read_cifar
from fskd.data.datasets.recipes import crd_recipe
from fskd.types import DataSplits

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR10 = Cifar(
    title="CIFAR10",
    n_classes=10,
    python=Files(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=_BATCHES,
        test="test_batch",
        names="batches.meta",
    ),
    binary=Files(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        names="batches.meta.txt",
        optional_names=True,
    ),
    labels_key="labels",
    names_key="label_names",
    n_label_bytes=1,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


@dataset("cifar10", defaults=crd_recipe(50_000), extent=Extent(50_000, 10_000, 10, (3, 32, 32)))
def cifar10(source: Source) -> DataSplits:
    """50,000 training and 10,000 test photographs, 32x32 colour, 10 classes.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        source: The root is, or holds, ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, or holds
            the archive ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz`` as published.

    Raises:
        SettingError: No such files were found.
        DataError: A file is missing or damaged, or a download failed.
    """
    return read_cifar(source, CIFAR10)
