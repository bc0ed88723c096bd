"""Batches of 32x32 images with crop and flip: whole-batch operations against one by one.

    python -m pytest benchmarks/bench_loader.py --benchmark-columns=median,rounds

Both make normalised float batches of 64 from 5,000 uint8 images. The ratio between the two rows is
the result; absolute times depend on the machine.
"""

from collections.abc import Iterator

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fskd.data.augment import AugmentSettings
from fskd.data.loader import DeviceLoader
from fskd.types import ImageSet

N, ROWS, STEPS = 5000, 64, 20
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def images() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (N, 3, 32, 32), generator=rng, dtype=torch.uint8)


class PerSample(Dataset[Tensor]):
    """What published KD code does: one image at a time through torchvision transforms."""

    def __init__(self) -> None:
        self.images = images()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, 4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def test_whole_batches(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "20 batches of 64"
    targets = torch.zeros(N, dtype=torch.int64)
    source = ImageSet(images(), targets, ("a",), MEAN, STD, "none", (3, 32, 32))
    moves = AugmentSettings(crop=4, flip=True)
    loader = DeviceLoader(source, torch.arange(N), ROWS, moves, 0, torch.device("cpu"))
    benchmark(lambda: [loader.batch(step) for step in range(STEPS)])


def test_per_sample(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "20 batches of 64"
    loader = DataLoader(PerSample(), ROWS, shuffle=True)

    def some() -> list[Tensor]:
        batches: Iterator[Tensor] = iter(loader)
        return [next(batches) for _ in range(STEPS)]

    benchmark(some)
