"""The benchmark command: what it prints and writes, and what kd_loss makes of it."""

import csv
from pathlib import Path

import pytest
import torch

from fskd.benchmark import main
from fskd.losses.fused import dispatch
from fskd.losses.fused.measuring import Row, keep, peak


def row(path: str, microseconds: float, classes: int = 1000) -> Row:
    return Row("kd", "cpu", "float32", 256, classes, path, microseconds, 1.0, 0.0, 0.1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, forgotten afterwards."""
    monkeypatch.setenv("FSKD_CACHE", str(tmp_path))
    dispatch.forget()
    yield tmp_path
    dispatch.forget()


def test_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One small shape, from the command to the CSV file."""
    threads = torch.get_num_threads()
    out = tmp_path / "losses.csv"
    arguments = ["losses", "--shapes", "4x3", "--dtypes", "float32", "--rounds", "5"]
    assert main([*arguments, "--parts", "kdplus", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "4 x 3, float32, cpu" in printed
    lines = out.read_text().splitlines()
    assert lines[0].startswith(f"# torch {torch.__version__}, fskd ")
    rows = list(csv.DictReader(lines[1:]))
    assert [r["path"] for r in rows] == ["two plain losses", "kd_loss, eager", "kd_loss, compiled"]
    assert float(rows[0]["ratio"]) == 1.0
    assert all(float(r["microseconds"]) > 0 for r in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "4"], "--shapes: '4' is not accepted; expected ROWSxCLASSES"),
        (
            ["--dtypes", "int8"],
            "--dtypes: 'int8' is not accepted; expected float32",
        ),
        (["--rounds", "2"], "--rounds: '2' is not accepted; expected a whole number of at least 5"),
        (["--parts", "dkd"], "--parts: 'dkd' is not accepted; expected kd, kdplus, linear"),
        (["--device", "tpu"], "--device: 'tpu' is not accepted; expected a device of this machine"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2."""
    assert main(["losses", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_keep(cache: Path) -> None:
    """Measurements decide the path, and new ones replace those of the same device and precision."""
    fast = [row("plain", 9e4), row("kd_loss, eager", 5e4), row("kd_loss, compiled", 1e4)]
    keep(fast)
    assert dispatch.best_path("cpu", "float32", 256, 1000) == "compiled"
    # A saving that does not pay for compiling within a thousand calls is none.
    keep([row("plain", 900), row("kd_loss, eager", 500), row("kd_loss, compiled", 100)])
    assert dispatch.best_path("cpu", "float32", 256, 1000) == "eager"
    keep([row("plain", 400), row("kd_loss, eager", 500), row("kd_loss, compiled", 450)])
    assert dispatch.best_path("cpu", "float32", 256, 1000) == "reference"
    assert len(dispatch.read_table((cache / "losses.json").read_text())) == 1


def test_peak() -> None:
    """Memory that is freed before more is taken does not count twice."""

    def call() -> None:
        for _ in range(3):
            torch.zeros(1000).add(1)

    assert peak(call, torch.device("cpu")) == pytest.approx(8000, rel=0.1)
