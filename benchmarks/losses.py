"""The loss paths with pytest-benchmark, and the chart of docs/losses.md.

    python -m pytest benchmarks/losses.py --benchmark-columns=median,rounds

times each path by itself. The table and ratios of docs/losses.md come from

    python -m fskd.benchmark losses --out benchmarks/results/losses-cpu.csv
    python benchmarks/losses.py benchmarks/results/losses-cpu.csv docs/losses.svg

where all paths take turns in every round, which a busy machine disturbs less.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fskd.losses.fused.measuring import plain
from fskd.losses.fused.objective import kd_loss

SHAPES = [(64, 10), (64, 100), (256, 100), (256, 1000), (128, 21841)]
PATHS = {
    "plain": plain,
    "eager": lambda s, t, y: kd_loss(s, t, y, impl="eager"),
    "compiled": lambda s, t, y: kd_loss(s, t, y, impl="compiled"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_losses(
    benchmark: BenchmarkFixture, shape: tuple[int, int], dtype: torch.dtype, path: str
) -> None:
    """Forward and backward of one path."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    teacher, targets = (torch.randn(shape) * 3).to(dtype), torch.randint(shape[1], shape[:1])
    benchmark.group = f"{shape[0]}x{shape[1]} {dtype}"

    def step() -> None:
        student.grad = None
        PATHS[path](student, teacher, targets).backward()

    step()
    benchmark.pedantic(step, rounds=7, iterations=max(1, 200_000 // student.numel()))


def chart(table: Path, out: Path) -> None:
    """Bars of the ratios in a table, a group of bars for every shape."""
    import matplotlib.pyplot as plt

    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in csv.DictReader(lines):
        if row["part"] == "kd" and row["path"] != "plain":
            groups[f"{row['rows']} x {row['classes']}\n{row['dtype']}"][row["path"]] = float(
                row["ratio"]
            )
    colours = {
        "plain, compiled": "#999999",
        "torchdistill": "#CC79A7",
        "kd_loss, eager": "#56B4E9",
        "kd_loss, compiled": "#0072B2",
        "gradient in a reused buffer, compiled": "#E69F00",
    }
    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    width = 0.8 / len(colours)
    for i, (path, colour) in enumerate(colours.items()):
        places = [
            (g + (i - len(colours) / 2 + 0.5) * width, ratios[path])
            for g, ratios in enumerate(groups.values())
            if path in ratios
        ]
        axes.bar(*zip(*places, strict=True), width, color=colour, label=path)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_ylabel("speed, plain composition = 1")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "fskd"
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    chart(Path(sys.argv[1]), Path(sys.argv[2]))
