"""Data sets, subsets and batches, usable alone, in any training loop."""

from fskd.data.augment import AugmentSettings, augment, normalise
from fskd.data.datasets.arrays import from_arrays
from fskd.data.datasets.base import load
from fskd.data.loader import DeviceLoader, IndexStream, WorkerLoader, make_loader
from fskd.data.splits import Subset, rank, subset_size, take

__all__ = [
    "AugmentSettings",
    "DeviceLoader",
    "IndexStream",
    "Subset",
    "WorkerLoader",
    "augment",
    "from_arrays",
    "load",
    "make_loader",
    "normalise",
    "rank",
    "subset_size",
    "take",
]
