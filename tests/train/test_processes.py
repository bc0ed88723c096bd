"""Two processes on the CPU give the losses of one process with the joint batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def losses(out: Path, launcher: list[str], method: str, more: list[str]) -> list[dict[str, float]]:
    options = [
        "-m", "fskd.run", "--quiet", "--device", "cpu", "--method", method, "--fraction", "0.1",
        "--steps", "12", "--student", "plain_net:no_norm", "--teacher", "plain_net:no_norm",
        "--out", str(out), "--set", "teacher.budget.steps=12", "runtime.log_every=1",
        "data.augment.affine=1", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *options],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (log,) = out.glob(f"*-{method}-10pct*/metrics.jsonl")
    result = json.loads((log.parent / "result.json").read_text())
    assert result["student_rows"] == 12 * 64
    assert result["steps"] == 12
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--unlabelled", "rest"], ["generator.name=blind_mixpatch", "generator.every=1"]],
    ids=["labelled", "unlabelled", "searching"],
)
@pytest.mark.parametrize("method", ["kdplus"])
def test_two_processes_equal_one(method: str, more: list[str], tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    alone = losses(tmp_path / "one", [], method, more)
    together = losses(tmp_path / "two", torchrun, method, more)
    assert (
        [line["step"] for line in alone] == [line["step"] for line in together] == [*range(1, 13)]
    )
    for one, two in zip(alone, together, strict=True):
        for term in ("ce", "kd", "generated"):
            assert two[term] == pytest.approx(one[term], rel=2e-4, abs=1e-6), (term, one["step"])
