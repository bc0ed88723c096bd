"""Trackers get what the run directory gets, and none of them can stop a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fskd.runs import track
from fskd.runs.track import Tracks

Command = Callable[..., tuple[int, str, str]]


class Recorder:
    """A tracker that keeps what it gets, and fails where it is told to."""

    made: "list[Recorder]"
    fails = ""

    def __init__(self, name: str, folder: Path, settings: dict[str, str]) -> None:
        self.name, self.settings = name, settings
        self.lines: list[dict[str, float]] = []
        self.measures: dict[str, float] = {}
        self.closed = ""
        self._maybe("start")
        type(self).made.append(self)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._maybe("log")
        self.lines.append({"step": step, **values})

    def finish(self, step: int, measures: dict[str, float]) -> None:
        self._maybe("finish")
        self.measures = {"step": step, **measures}

    def close(self, status: str) -> None:
        self._maybe("close")
        self.closed = status

    def _maybe(self, where: str) -> None:
        if type(self).fails == where:
            raise SystemExit("no network\nat all") if where == "log" else OSError("no\nnetwork")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Recorder", (Recorder,), {"made": [], "fails": ""})
    monkeypatch.setitem(track.TRACKERS, "wandb", kind)
    return kind


def result_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (run,) = (path for path in folder.iterdir() if "cnn_tiny" in path.name)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "result.json").read_text()), lines


def test_same_rows_and_measures(
    command: Command, tiny_options: list[str], tmp_path: Path, recorder: type[Recorder]
) -> None:
    options = [*tiny_options, "runtime.log_every=2", "--method", "kd", "--track", "wandb"]
    assert command(*options, folder=tmp_path)[0] == 0
    result, lines = result_of(tmp_path)
    teacher, student = recorder.made
    assert "cnn_small" in teacher.name
    assert student.lines == [{k: v for k, v in r.items() if k != "phase"} for r in lines]
    assert [line["step"] for line in student.lines] == [2, 4, 6]
    assert student.measures["step"] == 6
    for name in ("top1", "nll", "ece", "agreement", "tv_test", "student_rows"):
        assert student.measures[name] == result[name]
    assert student.settings["method.temperature"] == "4.0"
    assert student.settings["key"] == result["key"]
    assert student.closed == "finished"


@pytest.mark.parametrize("where", ["start", "log", "finish", "close"])
def test_failure_is_one_line(
    where: str, command: Command, tiny_options: list[str], tmp_path: Path, recorder: type[Recorder]
) -> None:
    recorder.fails = where
    options = [*tiny_options, "--method", "ce", "--track", "wandb"]
    code, _, said = command(*options, folder=tmp_path)
    assert code == 0
    lines = [line for line in said.splitlines() if "wandb is off" in line]
    assert len(lines) == 1
    assert "network" in lines[0]
    assert result_of(tmp_path)[0]["top1"] > 0


def test_failed_training_closes_trackers(
    command: Command, tiny_options: list[str], tmp_path: Path, recorder: type[Recorder]
) -> None:
    options = [*tiny_options, "optim.lr=1e30", "--method", "ce", "--track", "wandb"]
    assert command(*options, "--steps", "60", folder=tmp_path)[0] == 1
    assert [made.closed for made in recorder.made] == ["failed"]


def test_library_that_is_absent(
    command: Command,
    tiny_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    options = [*tiny_options, "--method", "ce", "--track", "mlflow"]
    code, _, said = command(*options, folder=tmp_path)
    assert code == 0
    assert "mlflow is off for this run (ModuleNotFoundError" in said
    assert "fskd[track]" in said


def test_unknown_tracker(command: Command, tiny_options: list[str]) -> None:
    code, _, said = command(*tiny_options, "--track", "tensorbored")
    assert code == 2
    assert "runtime.track" in said
    assert "tensorboard" in said


def test_off_by_default(
    command: Command, tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert command(*tiny_options, "--method", "ce", "--quiet", folder=tmp_path)[::2] == (0, "")


def test_not_in_the_key(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    options = [*tiny_options, "--method", "ce"]
    command(*options, folder=tmp_path)
    said = command(*options, "--track", "wandb", folder=tmp_path)[2]
    assert "already finished" in said


def test_tensorboard_files(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [*tiny_options, "runtime.log_every=2", "--method", "ce", "--track", "tensorboard"]
    assert command(*options, folder=tmp_path)[0] == 0
    result, lines = result_of(tmp_path)
    (events,) = tmp_path.glob("*cnn_tiny*/tensorboard")
    found = EventAccumulator(str(events))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/ce")]
    assert losses == [(r["step"], pytest.approx(r["ce"], rel=1e-6)) for r in lines]
    (top1,) = found.Scalars("result/top1")
    assert (top1.step, top1.value) == (6, pytest.approx(result["top1"], rel=1e-6))


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> None:
    module = ModuleType(name)
    for key, value in parts.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def drive(name: str, folder: Path) -> list[str]:
    said: list[str] = []
    result = SimpleNamespace(**dict.fromkeys(track.MEASURES) | {"top1": 0.5, "steps": 20})
    with Tracks(said.append) as tracks:
        tracks.start(name, "run", folder, {"optim.lr": "0.2"})
        tracks.log({"step": 20, "phase": "main", "ce": 1.5})
        tracks.finish(result)  # type: ignore[arg-type]
    return said


def test_mlflow_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    fake_module(
        monkeypatch, "mlflow",
        start_run=lambda **given: calls.append(("start", given["run_name"])),
        log_params=lambda values: calls.append(values),
        log_metrics=lambda values, step: calls.append((values, step)),
        end_run=lambda status: calls.append(status),
    )  # fmt: skip
    assert drive("mlflow", tmp_path) == []
    assert calls == [
        ("start", "run"), {"optim.lr": "0.2"}, ({"train.ce": 1.5}, 20),
        ({"result.top1": 0.5, "result.steps": 20.0}, 20), "FINISHED",
    ]  # fmt: skip


def test_wandb_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((values, step)),
        finish=lambda exit_code: calls.append(exit_code),
        summary={},
    )
    fake_module(monkeypatch, "wandb", init=lambda **given: calls.append(given["config"]) or run)
    assert drive("wandb", tmp_path) == []
    assert calls == [{"optim.lr": "0.2"}, ({"train/ce": 1.5}, 20), 0]
    assert run.summary == {"result/top1": 0.5, "result/steps": 20.0}
