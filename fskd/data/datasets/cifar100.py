"""CIFAR-100: 60,000 colour images in 100 classes, 32x32."""

from fskd.data.datasets.base import Extent, Source, dataset
from fskd.data.datasets.cifar_files import Cifar, Files, read_cifar
from fskd.data.datasets.recipes import crd_recipe
from fskd.types import DataSplits

CIFAR100 = Cifar(
    title="CIFAR100",
    n_classes=100,
    python=Files(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test="test",
        names="meta",
    ),
    binary=Files(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        optional_names=True,
    ),
    labels_key="fine_labels",
    names_key="fine_label_names",
    n_label_bytes=2,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)


@dataset("cifar100", defaults=crd_recipe(50_000), extent=Extent(50_000, 10_000, 100, (3, 32, 32)))
def cifar100(source: Source) -> DataSplits:
    """50,000 training and 10,000 test photographs, 32x32 colour, 100 fine classes.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        source: The root is, or holds, ``cifar-100-python`` or ``cifar-100-binary``, or holds the
            archive ``cifar-100-python.tar.gz`` or ``cifar-100-binary.tar.gz`` as published.

    Raises:
        SettingError: No such files were found.
        DataError: A file is missing or damaged, or a download failed.
    """
    return read_cifar(source, CIFAR100)
