"""Loading the results of 10,000 runs: read one by one, from the cache, and after one new run.

    python -m pytest benchmarks/bench_store.py --benchmark-columns=median,rounds

The runs are those of a large study (2 data sets, 10 sizes, 25 arms, 20 seeds) with complete
settings; each directory holds its ``result.json`` only.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fskd.results.loading import CACHE, load

DATA, SIZES, ARMS, SEEDS = ("cifar10", "cifar100"), range(1, 11), range(25), range(20)


def result(data: str, size: int, arm: int, seed: int) -> dict[str, Any]:
    optim = {
        "lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "onecycle",
        "warmup": 0.3, "milestones": [0.625, 0.75, 0.875], "decay": 0.1, "batch_size": 64,
        "grad_clip": None,
    }  # fmt: skip
    augment = {"crop": 4, "flip": True, "affine": 0.0}
    teacher = {
        "name": "resnet32x4", "checkpoint": None, "data": "full", "seed": 1000,
        "method": {"name": "ce", "label_smoothing": 0.0}, "generator": None, "augment": augment,
        "optim": optim, "budget": {"steps": None, "epochs": 40.0}, "teacher": None,
    }  # fmt: skip
    config = {
        "data": {
            "name": data, "root": None, "image_size": None, "download": False,
            "sampler": {"name": "stratified"}, "fraction": size / 10, "shots": None, "n": None,
            "split_seed": seed, "val": 0, "augment": augment,
        },
        "student": "resnet8x4", "peers": [], "teacher": teacher,
        "method": {"name": f"method{arm % 12}", "temperature": 4.0, "ce_weight": 0.1},
        "generator": {"name": "mixup", "share": 0.5, "when": "joint", "alpha": 1.0},
        "optim": optim, "budget": {"steps": 800 * (1 + arm // 12), "epochs": None}, "seed": seed,
        "inputs_sha256": {"data": "a" * 64},
    }  # fmt: skip
    return {
        "key": f"{data}-{size}-{arm}-{seed}", "config": config, "n_train": 5000 * size,
        "num_classes": 10, "data_sha256": data.ljust(64, "d"), "test_sha256": data.ljust(64, "e"),
        "split_sha256": f"{seed:064d}", "top1": 0.5 + seed / 100, "nll": 1.0, "ece": 0.1,
        "train_top1": 1.0, "steps": 800, "epochs": 10.0, "student_rows": 51200,
        "teacher_queries": 60, "top5": 0.9, "agreement": 0.8, "tv_train": 0.1, "tv_test": 0.2,
        "tv_paths": 0.3, "teacher": {"name": "resnet32x4", "key": "t", "top1": 0.9},
        "phases": {"main": 800}, "final_loss": {"ce": 0.1, "kd": 0.2},
        "seconds": {"prepare": 0.1, "train": 12.3}, "device": "cpu", "format": 1,
        "versions": {"python": "3.11.7", "fskd": "0.1", "torch": "2.15.0", "numpy": "2.4.6"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for point in itertools.product(DATA, SIZES, ARMS, SEEDS):
        folder = root / "-".join(map(str, point))
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result(*point), indent=2))
    return root


def test_first_time(benchmark: BenchmarkFixture, runs: Path) -> None:
    def forget() -> None:
        (runs / CACHE).unlink(missing_ok=True)

    table = benchmark.pedantic(lambda: load(runs), setup=forget, rounds=3)
    assert len(table) == 10_000
    assert table["arm"].nunique() == 25


def test_from_cache(benchmark: BenchmarkFixture, runs: Path) -> None:
    load(runs)
    assert len(benchmark.pedantic(lambda: load(runs), rounds=5)) == 10_000


def test_one_new_run(benchmark: BenchmarkFixture, runs: Path) -> None:
    load(runs)
    changed = runs / "cifar10-1-0-0" / "result.json"

    def touch() -> None:
        changed.write_text(changed.read_text() + "\n")

    assert len(benchmark.pedantic(lambda: load(runs), setup=touch, rounds=5)) == 10_000
