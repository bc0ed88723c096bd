"""A run that is stopped at any moment goes on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fskd.config import Runtime
from fskd.errors import FskdError
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.runner import run
from fskd.runs.screen import Screen
from fskd.runs.session import Session


class Stops(Screen):
    """Stops the process's training at given steps, once each."""

    def __init__(self, at: set[int]) -> None:
        self.at = at

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        if record["step"] in self.at:
            self.at.remove(record["step"])
            raise KeyboardInterrupt


def go(out: Path, raw: dict[str, Any], screen: Screen) -> Result:
    runtime = Runtime(out=str(out), save_every=0, log_every=1)
    return run(resolve(raw), Session(runtime, screen))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "kdplus", "data": {"augment": {"flip": True, "affine": 1.0, "crop": 1}}},
        {"method": "crd", "generator": "none"},
        {"method": "dml"},
        {"method": "sskd"},
        {"method": "fsp", "student": "cnn_small"},
        {"method": "kdplus+fitnet"},
        {"method": "kd", "student": "plain_net:dropout"},
        {"generator": {"name": "mixup", "when": "alternate"}},
        {"method": "pe", "budget": {"steps": 3}, "generator": {"every": 1}},
    ],
    ids=lambda change: str(change.get("method", "alternate")) + change.get("student", ""),
)
def test_stopped_at_several_steps(
    change: dict[str, Any],
    tiny: dict[str, Any],
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    raw = merge(merge(tiny, {"budget": {"steps": 8}}), change)
    whole = go(out, raw, Screen())
    stops = Stops({1, 3, 4, 8})
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, raw, stops)
    resumed = go(tmp_path, raw, stops)
    assert not stops.at
    for name in ("student.safetensors", "metrics.jsonl"):
        first, second = ((Path(r.path) / name).read_bytes() for r in (whole, resumed))
        assert first == second, name
    for field in ("top1", "nll", "student_rows", "teacher_queries", "tv_paths", "final_loss",
                  "searches"):  # fmt: skip
        assert getattr(whole, field) == getattr(resumed, field), field


def test_damaged_state_is_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    raw = merge(tiny, {"method": "ce"})
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, raw, Stops({4}))
    (state,) = tmp_path.glob("*/state.ckpt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(FskdError, match=r"state\.ckpt.*--force") as caught:
        go(tmp_path, raw, Screen())
    assert "\n" not in str(caught.value)
    forced = run(resolve(raw), Session(Runtime(out=str(tmp_path))), force=True)
    assert forced.steps == 6


def test_state_of_another_version_is_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    raw = merge(tiny, {"method": "ce"})
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, raw, Stops({4}))
    (path,) = tmp_path.glob("*/state.ckpt")
    state = torch.load(path, weights_only=True)
    old = {name.replace("nets.student", "students.0"): x for name, x in state["task"].items()}
    state["task"] = old
    torch.save(state, path)
    with pytest.raises(FskdError, match=r"state\.ckpt: not of these networks.*--force") as caught:
        go(tmp_path, raw, Screen())
    assert "\n" not in str(caught.value)


def test_killed_around_its_last_write(tiny: dict[str, Any], out: Path) -> None:
    """What a process leaves that dies just before or after the result is removed by the next."""
    folder = Path(go(out, tiny, Screen()).path)
    names = sorted(path.name for path in folder.iterdir())
    (folder / "result.json").rename(folder / ".result.json.abc.tmp")
    go(out, tiny, Screen())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in ("state.ckpt", "answers.safetensors"):
        (folder / name).write_text("x")
    (folder / "episode1").mkdir()
    go(out, tiny, Screen())
    assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL five times, in the teacher's training or the student's; the same bytes at the end."""
    options = [
        "--method", "kdplus", "--fraction", "0.1", "--steps", "400", "--quiet",
        "--set", "teacher.budget.epochs=15", "runtime.save_every=0.05", "data.augment.affine=1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fskd.run", *options, "--out", str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start("whole").wait() == 0
    duration = time.monotonic() - begun
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for kill in range(5):
        process = start("killed")
        # From before the first step to near the end of what is left.
        time.sleep(rng.uniform(0.3, 0.9) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "killed").glob("*/result.json"):
            assert (path.parent / "student.safetensors").exists(), (seed, kill)
    assert start("killed").wait() == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "killed").iterdir()}
    for name in names:
        for file in ("student.safetensors", "metrics.jsonl"):
            whole, killed = ((tmp_path / f / name / file).read_bytes() for f in ("whole", "killed"))
            assert whole == killed, f"{file} of {name} differs; seed {seed}"
        left = {path.name for path in (tmp_path / "killed" / name).iterdir()}
        assert left == {path.name for path in (tmp_path / "whole" / name).iterdir()}
