"""SIGKILL of a sweep, its workers or their server at any moment changes nothing in the end."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import end_state, environment, protocol

from fskd.run import main

# 11 kills in all; those of a sweep cost a start of Python and torch each.
SWEEP_KILLS, WORKER_KILLS = 4, 7
SETTINGS = ["--set", "budget.steps=40", "teacher.budget.steps=60"]
OPTIONS = ["--workers", "2", "--no-report", "--tries", "1000", *SETTINGS, "runtime.save_every=0.05"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers(pid: int) -> list[int]:
    """Workers are children of the server, which is a child of the sweep."""
    return [worker for child in children(pid) for worker in children(child)]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = "{ce: {method: ce}, kd: {method: kd}, kdplus: {method: kdplus}}"
    return protocol(tmp_path_factory.mktemp("protocol"), arms, seeds=4)


@pytest.fixture(scope="module")
def undisturbed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What single runs, one after another, leave."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([str(file), "--out", str(out), *SETTINGS]) == 0
    return out


def go(file: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fskd.sweep", str(file), "--out", str(out), *OPTIONS]
    with (out / "said").open("ab") as said:
        return subprocess.Popen(command, env=environment(), stdout=said, stderr=said)


def finish(file: Path, out: Path) -> None:
    assert go(file, out).wait(500) == 0, (out / "said").read_text()


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def finished(out: Path) -> list[Path]:
    return sorted(out.glob("*/result.json"))


def test_the_sweep_is_killed(file: Path, undisturbed: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(SWEEP_KILLS):
        process = go(file, tmp_path)
        until(lambda process=process: workers(process.pid) or process.poll() is not None)
        time.sleep(rng.uniform(0.0, 1.0))
        left = workers(process.pid)
        assert process.poll() is None, (tmp_path / "said").read_text()  # there was work to disturb
        kill(process.pid)
        process.wait()
        until(lambda left=left: all(map(gone, left)), 60)  # they end with the sweep
        for result in finished(tmp_path)[3:]:
            shutil.rmtree(result.parent)  # so that there is work for every kill
    finish(file, tmp_path)
    assert end_state(tmp_path) == end_state(undisturbed)


def test_workers_are_killed(file: Path, undisturbed: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    process, killed = go(file, tmp_path), 0
    while killed < WORKER_KILLS:
        if process.poll() is not None:  # it was faster; more work for it
            assert process.returncode == 0, (tmp_path / "said").read_text()
            for result in finished(tmp_path)[::2]:
                shutil.rmtree(result.parent)
            process = go(file, tmp_path)
        until(lambda process=process: workers(process.pid) or process.poll() is not None)
        time.sleep(rng.uniform(0.0, 0.5))
        victims = workers(process.pid)
        if victims and killed == WORKER_KILLS // 2:
            victims = [child for child in children(process.pid) if children(child)]  # the server
        if victims:
            kill(rng.choice(victims))
            killed += 1
    assert process.wait(500) == 0, (tmp_path / "said").read_text()
    finish(file, tmp_path)
    assert end_state(tmp_path) == end_state(undisturbed)
