"""Long runs with such teachers: resumed ones, episodes, orders by a teacher, sweeps."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.runner import run
from fskd.runs.screen import Screen
from fskd.runs.session import Session
from fskd.sweep import main


class Stops(Screen):
    """Stops the process's training at a step, once."""

    def __init__(self, at: int) -> None:
        self.at = {at}

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        if record["step"] in self.at:
            self.at.clear()
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["kd", "kdplus"])
def test_a_resumed_run_asks_about_no_training_image_twice(
    method: str, tiny_kd: dict[str, Any], tmp_path: Path, seen: list[Tensor]
) -> None:
    n = 120 if method == "kd" else 120 + 6 * 32
    config = resolve(tiny_kd, {"method": method, "teacher": {"name": "boxes:ask", "queries": n}})

    def go(folder: str, screen: Screen) -> Result:
        out = str(tmp_path / folder)
        return run(
            config, Session(Runtime(out=out, device="cpu", save_every=0, log_every=1), screen)
        )

    whole = go("whole", Screen())
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        go("stopped", stops := Stops(3))
    assert len(list((tmp_path / "stopped").glob("*/answers.safetensors"))) == 1
    resumed = go("stopped", stops)
    # The step that was stopped before it was saved is made again, with its generated rows.
    assert sum(map(len, seen)) == n + (0 if method == "kd" else 32)
    assert resumed.teacher_queries == whole.teacher_queries == n
    assert (resumed.final_loss, resumed.top1) == (whole.final_loss, whole.top1)
    assert not list((tmp_path / "stopped").glob("*/answers.safetensors"))


@pytest.mark.parametrize("name", ["boxes:ask", "cnn_tiny+cnn_tiny"])
def test_episodes(name: str, tmp_path: Path, seen: list[Tensor]) -> None:
    settings = {
        "data": {
            "sampler": {"name": "episodic", "episodes": 2, "ways": 3, "queries": 4},
            "shots": 2,
        },
        "budget": {"steps": 3},
        "method": "kd",
        "teacher": {"name": name, "budget": {"steps": 5}},
    }
    found = run(resolve(settings), Session(Runtime(out=str(tmp_path), device="cpu")))
    teacher = found.teacher or {}
    assert (found.episodes or {})["n"] == 2
    assert found.num_classes == 3
    assert ("top1" in teacher) == ("+" in name) == (found.agreement is not None)
    assert found.teacher_queries == 6 * (1 + name.count("+"))
    few = merge(settings, {"teacher": {"queries": 5}})
    with pytest.raises(SettingError, match="expected at least"):
        run(resolve(few), Session(Runtime(out=str(tmp_path), device="cpu")))


@pytest.mark.parametrize("name", ["boxes:ask", "cnn_tiny+cnn_tiny"])
def test_samplers_that_read_logits(name: str, tmp_path: Path, tiny_kd: dict[str, Any]) -> None:
    data = {"sampler": "margin", "splits": "none"}
    config = resolve(tiny_kd, {"data": data, "teacher": {"name": name}})
    found = run(config, Session(Runtime(out=str(tmp_path), device="cpu")))
    assert found.split_queries == 1198 * (1 + name.count("+"))


def test_a_sweep_makes_every_member_once(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    base = {"data": {"name": "digits"}, "budget": {"steps": 6}}
    arms = {
        "one": {"method": "kd", "teacher": {"name": "cnn_tiny", "budget": {"steps": 5}}},
        "two": {"method": "kd", "teacher": {"name": "cnn_tiny+cnn_tiny", "budget": {"steps": 5}}},
        "box": {"method": "kd", "teacher": {"name": "boxes:ask"}},
    }
    file.write_text(yaml.safe_dump({"base": base, "axes": {"fraction": [0.1]}, "arms": arms}))
    assert main([str(file), "--out", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]) == 0
    made = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "runs").glob("digits*"))
    assert (
        made
        == ["digits-cnn_tiny-ce-100pct-s1000", "digits-cnn_tiny-ce-100pct-s1001"]
        + ["digits-cnn_tiny-kd-10pct-s0"] * 3
    )
