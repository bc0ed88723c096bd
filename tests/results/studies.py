"""Folders of made-up runs for the tests of reports: a whole study with all that can go wrong."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fskd.results.store import Result

sys.path.insert(0, str(Path(__file__).parent))
from made import made, write

ARMS = ("ce", "kd", "kdplus", "at", "rkd", "ours")
SIZES = (10, 50, 100, 250, 1000)
SEEDS = range(5)
TASKS = {"digits": "net_small", "letters": "net_other"}
FAILED, MISSING = "fa11ed0000000000", "0000000000c0ffee"


def accuracy(arm: str, data: str, n: int, seed: int) -> float:
    """Any curve that rises, with noise that arms share and noise of their own."""
    shared = np.random.default_rng([n, seed, len(data)]).normal(0, 0.01)
    own = np.random.default_rng([ARMS.index(arm), n, seed]).normal(0, 0.005)
    level = 0.35 + 0.2 * np.log10(n / 10) + 0.012 * ARMS.index(arm)
    return float(level + shared + own)


def run(arm: str, data: str, n: int, seed: int, **changes: Any) -> Result:
    """One run of the study; ``ours`` is KD with another temperature."""
    top1 = accuracy(arm, data, n, seed)
    config = {"data.name": data, "student": TASKS[data]}
    alone = arm == "ce"
    values: dict[str, Any] = {
        "key": f"{list(TASKS).index(data)}{ARMS.index(arm)}{n:06d}{seed:08d}",
        "ece": 0.3 * (1 - top1),
        "nll": 3 * (1 - top1),
        "agreement": None if alone else top1 + 0.05, "tv_test": None if alone else 1 - top1,
        "tv_train": None if alone else (1 - top1) / 4,
        "tv_paths": None if alone else (1 - top1) / 2,
        "teacher_queries": 0 if alone else 100 * n if arm == "kdplus" else n,
        "data_sha256": str(len(data)) * 64,
        "seconds": {"train": 2.0 + ARMS.index(arm)},
    }  # fmt: skip
    result = made({"ours": "kd"}.get(arm, arm), n, seed, top1, config=config, **values | changes)
    if arm == "ours":
        result.config["method"]["temperature"] = 8.0
    return result


def study() -> list[Result]:
    """Six arms, five sizes, five seeds, two tasks, with a hole, a single seed and unequal costs."""
    runs = itertools.product(TASKS, ARMS, SIZES, SEEDS)
    return [
        run(arm, data, n, seed, **_odd(arm, n, seed))
        for data, arm, n, seed in runs
        if (arm, data, n) != ("rkd", "letters", 10) and ((arm, n) != ("at", 50) or seed == 0)
    ]


def _odd(arm: str, n: int, seed: int) -> dict[str, Any]:
    """What is unlike the other runs: longer training, another split."""
    if (arm, n) == ("at", 1000):
        return {"steps": 200, "student_rows": 12800}
    return {"split_sha256": "f" * 64} if (arm, n, seed) == ("rkd", 100, 2) else {}


def write_study(root: Path) -> Path:
    """The study with names of arms, a failed, an unfinished, a missing and an unreadable run."""
    runs = study()
    write(root, *runs)
    names = {result.key: ARMS[int(result.key[1])] for result in runs}
    names |= {MISSING: "kdplus", FAILED: "kdplus"}
    (root / "fractions.arms.json").write_text(json.dumps(names))
    failed = root / f"digits-net_small-kdplus-5pct-s9-{FAILED}"
    failed.mkdir()
    about = {"error": "step 8: the term\n'kd' is nan", "time": "2026-03-01T10:12", "attempt": 2}
    (failed / "failed.json").write_text(json.dumps(about))
    (failed / "config.yaml").write_text("key: x\n")
    begun = root / "digits-net_small-rkd-5pct-s9-00000000cafecafe"
    begun.mkdir()
    (begun / "config.yaml").write_text("key: x\n")
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text("{")
    return root


HOSTILE = r"""<img src=x onerror=alert(1)>&"'</script>$\input{x}$_%#^~{|*`"""
