"""Run directories with made-up results, for the tests of loading and curves."""

import copy
from pathlib import Path
from typing import Any

from fskd.results.store import Result

TEACHER = {"name": "net_big", "key": "t0", "n_train": 1000, "top1": 0.9}
CONFIG: dict[str, Any] = {
    "data": {
        "name": "digits", "root": "/a", "sampler": {"name": "stratified"}, "fraction": None,
        "shots": None, "n": None, "split_seed": 0, "augment": {"crop": 0},
    },
    "student": "net_small", "peers": [], "teacher": None, "generator": None,
    "budget": {"steps": 100}, "seed": 0, "inputs_sha256": {},
}  # fmt: skip


def made(
    method: str = "kd", n: int = 50, seed: int = 0, top1: float = 0.5, *,
    config: dict[str, Any] | None = None, **changes: Any,
) -> Result:  # fmt: skip
    """A result whose split is that of its seed; ``config`` holds dotted settings."""
    settings = copy.deepcopy(CONFIG) | {"method": {"name": method}, "seed": seed}
    settings["data"] |= {"split_seed": seed, "fraction": n / 1000}
    teacher = None if method == "ce" else TEACHER
    if teacher:
        settings["teacher"] = {"name": teacher["name"], "seed": 1000}
    for name, value in (config or {}).items():
        place = settings
        *parents, last = name.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
    values: dict[str, Any] = {
        "key": f"{method}-{n}-{seed}-{sorted((config or {}).items())}", "config": settings,
        "n_train": n, "num_classes": 10, "data_sha256": "d" * 64, "test_sha256": "e" * 64,
        "split_sha256": f"{seed:x}" * 64, "top1": top1, "nll": 1 - top1, "ece": 0.1,
        "train_top1": 1.0, "steps": 100, "epochs": 2.0, "student_rows": 6400,
        "teacher_queries": 50, "teacher": teacher, "seconds": {"train": 2.0, "teacher": 8.0},
        "versions": {"torch": "2"},
    }  # fmt: skip
    return Result(**values | changes)


def write(root: Path, *results: Result) -> Path:
    """One directory for each, named after its key."""
    for result in results:
        folder = root / result.key.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(result.to_json())
    return root
