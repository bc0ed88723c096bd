"""Settings that all tests share: few threads, and a folder whose tiny teacher is trained once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("FSKD_TEST_THREADS", "1")))

# A run that takes a fraction of a second; the teacher sees 20 steps.
TINY: dict[str, Any] = {
    "data": {"fraction": 0.1},
    "budget": {"steps": 6},
    "teacher": {"budget": {"steps": 20}},
}
TINY_OPTIONS = ["--steps", "6", "--fraction", "0.1", "--set", "teacher.budget.steps=20"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded images of a test stay with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path / ".cache"


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs of a test session, so that teachers are reused."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Settings of a tiny run on digits."""
    return TINY


@pytest.fixture
def command(out: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in this process: (exit code, stdout, stderr)."""
    from fskd.run import main

    def call(*options: str, folder: Path | None = out) -> tuple[int, str, str]:
        capsys.readouterr()
        place = [] if folder is None else ["--out", str(folder)]
        code = main([*options, *place])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def tiny_options() -> list[str]:
    """Command-line options of a tiny run on digits."""
    return list(TINY_OPTIONS)
