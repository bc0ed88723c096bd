"""1,024 images of 28x28 through a network, in passes of several lengths.

    python -m pytest benchmarks/bench_evaluate.py --benchmark-columns=median,rounds

``rows_at_once`` is what fskd takes; the ratios between the rows are the result. Above some length
every map gets fresh memory from the system.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fskd.data.datasets.base import image_set
from fskd.data.loader import chunks, rows_at_once
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet

CPU, SIZE, N = torch.device("cpu"), (1, 28, 28), 1024
ROWS = {"rows_at_once": rows_at_once(SIZE, CPU), "32": 32, "512": 512, "1024": 1024}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["cnn_tiny", "cnn_small", "resnet20"])
def test_pass(benchmark: BenchmarkFixture, name: str, rows: str) -> None:
    benchmark.group = name
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (N, *SIZE), generator=rng, dtype=torch.uint8)
    images = image_set(pixels, [0] * N, ["a"], (0.5,), (0.5,))
    net = FeatureNet(build(name, 10, 1)).eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def whole() -> None:
        for inputs, _ in chunks(images, CPU, rows=ROWS[rows]):
            net(inputs)

    benchmark(whole)
