"""Episodic runs through the command: numbers, interruptions and mistakes."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import fskd
from fskd.config import Runtime
from fskd.data.datasets.base import load
from fskd.data.manifest import shipped
from fskd.data.samplers.episodic import draw_episodes
from fskd.errors import FskdError, SettingError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.calibrate import Planner
from fskd.runs.episodes import episode_config, episode_data
from fskd.runs.estimate import Cost
from fskd.runs.prepare import NOTHING_GIVEN
from fskd.runs.prepare import build as build_job
from fskd.runs.runner import RunDir, run
from fskd.runs.screen import Screen
from fskd.runs.session import Session
from fskd.runs.track import Tracks
from fskd.runs.training import train

Command = Callable[..., tuple[int, str, str]]

needs_learn2learn = pytest.mark.skipif(
    find_spec("learn2learn") is None, reason="needs the extra 'episodic'"
)

TASKS = ["--sampler", "episodic", "--set", "data.ways=3", "data.shots=2", "data.queries=5"]
FILE = shipped() / "digits" / "stratified-seed0.npz"
SHORT = ["data.episodes=4", "budget.steps=5", "teacher.budget.steps=20"]
RAW: dict[str, Any] = {
    "data": {"sampler": "episodic", "ways": 3, "shots": 2, "queries": 5, "episodes": 4},
    "budget": {"steps": 5},
    "teacher": {"budget": {"steps": 20}},
}


def go(out: Path, screen: Screen | None = None, **changes: Any) -> Result:
    runtime = Runtime(out=str(out), save_every=0, log_every=1)
    return run(resolve(merge(RAW, changes)), Session(runtime, screen or Screen()))


@needs_learn2learn
def test_searches_of_every_episode(tmp_path: Path) -> None:
    """What a generator found in each, by episode."""
    searching = {"name": "blind_mixpatch", "every": 3}
    found = go(tmp_path, method="kdplus", generator=searching, budget={"steps": 5}).searches
    assert {record["episode"] for record in found} == {0, 1, 2, 3}
    assert all(record["rows"] > 0 for record in found)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def only(folder: Path, method: str) -> Path:
    (found,) = folder.glob(f"*-{method}-3way-2shot-*")
    return found


# --- numbers -------------------------------------------------------------------------------------


@needs_learn2learn
def test_command(command: Command, tmp_path: Path) -> None:
    """Mean and interval are those of the episodes' accuracies, which the files keep."""
    code, table, _ = command(*TASKS, *SHORT, "--method", "kd", folder=tmp_path)
    assert code == 0
    folder = only(tmp_path, "kd")
    result = read(folder)
    lines = [json.loads(x) for x in (folder / "episodes.jsonl").read_text().splitlines()]
    top1 = [line["top1"] for line in lines]
    assert result["episodes"]["top1"] == top1
    assert result["episodes"]["n"] == len(top1) == 4
    assert len(set(top1)) > 1
    low, high = stats.t.interval(0.95, 3, statistics.fmean(top1), stats.sem(top1))
    half = result["episodes"]["interval"]
    assert result["top1"] == pytest.approx(statistics.fmean(top1))
    assert (result["top1"] - half, result["top1"] + half) == pytest.approx((low, high))
    assert result["episodes"]["std"] == pytest.approx(statistics.stdev(top1))
    assert f"{100 * result['top1']:.2f} % +- {100 * half:.2f} %" in " ".join(table.split())
    assert "3-way 2-shot episodes" in table
    assert all(0 <= t * 15 == pytest.approx(round(t * 15)) for t in top1), "of 15 queries"
    taught = statistics.fmean(line["teacher_top1"] for line in lines)
    assert result["teacher"]["top1"] == pytest.approx(taught)
    assert (result["n_train"], result["num_classes"], result["steps"]) == (6, 3, 5)
    assert result["student_rows"] == 5 * 32
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "config.yaml",
        "episodes.jsonl",
        "result.json",
    ]


@needs_learn2learn
def test_paired_by_episode(command: Command, tmp_path: Path) -> None:
    code, table, _ = command(*TASKS, *SHORT, "--method", "ce,kdplus", folder=tmp_path)
    assert code == 0
    ce, ours = (read(only(tmp_path, method)) for method in ("ce", "kdplus"))
    assert ce["split_sha256"] == ours["split_sha256"]
    apart = [a - b for a, b in zip(ours["episodes"]["top1"], ce["episodes"]["top1"], strict=True)]
    error = statistics.stdev(apart) / math.sqrt(4)
    assert f"{100 * statistics.fmean(apart):+.2f} +- {100 * error:.2f} points (4 episodes" in table
    for found in (ce, ours):
        assert f"{100 * found['top1']:.2f} +- {100 * found['episodes']['interval']:.2f}" in table


@needs_learn2learn
@pytest.mark.parametrize("method", ["ce", "kd", "kdplus"])
def test_costs_are_foreseen(method: str, out: Path) -> None:
    """Those of one episode, as the result has them."""
    result, config = go(out, method=method), resolve(merge(RAW, {"method": method}))
    got = Cost(result.n_train, result.steps, result.student_rows, result.teacher_queries)
    assert Planner().cost(config) == got


@needs_learn2learn
def test_an_episode_is_an_ordinary_run(tmp_path: Path) -> None:
    """Trained by hand on the support alone, the student gets the same accuracy on the queries."""
    result = go(tmp_path, method="ce")
    config, data = resolve(merge(RAW, {"method": "ce"})), load("digits")
    settings = config.data.episodic
    assert settings is not None
    assert result.episodes is not None
    session = Session(Runtime(out=str(tmp_path)))
    for number, episode in enumerate(draw_episodes(data, settings, 2, config.seed)):
        parts = episode_data(data, episode, "test")
        folder = RunDir(tmp_path / f"by hand {number}")
        folder.path.mkdir()
        job = build_job(episode_config(config, number), parts, folder, NOTHING_GIVEN)
        assert sorted(job.subset.train.tolist()) == list(range(6))
        train(job, session, None, "student", Tracks(session.screen.say))
        net = job.students[0].net.eval()
        hits = 0
        for position, label in zip(episode.queries.tolist(), parts.test.targets, strict=True):
            image = data.test.images[position].float() / 255  # type: ignore[index]
            image = (image - torch.tensor(data.test.mean)) / torch.tensor(data.test.std)
            hits += int(net(image[None]).argmax()) == int(label)
            assert episode.classes[label] == data.test.targets[position]
        assert hits / 15 == pytest.approx(result.episodes["top1"][number])


@needs_learn2learn
def test_teacher_is_restricted(tmp_path: Path) -> None:
    """Its accuracy on queries is among the episode's classes only."""
    result = go(tmp_path, method="kd", teacher={"budget": {"steps": 20}})
    data = load("digits")
    net = build("cnn_small", 10, 1)
    (folder,) = tmp_path.glob("*cnn_small*")
    load_weights(net, folder / "student.safetensors", "teacher")
    net.eval()
    settings = resolve(RAW).data.episodic
    assert settings is not None
    shares = []
    for classes, _, queries in draw_episodes(data, settings, 2, 0):
        x = data.test.images[queries].float() / 255  # type: ignore[index]
        x = (x - torch.tensor(data.test.mean)) / torch.tensor(data.test.std)
        chosen = classes[net(x)[:, classes].argmax(1)]
        shares.append(float((chosen == data.test.targets[queries]).double().mean()))
    assert result.teacher is not None
    assert result.teacher["top1"] == pytest.approx(statistics.fmean(shares))


@needs_learn2learn
@pytest.mark.parametrize("method", ["crd", "sskd", "dml", "fitnet", "kdplus+at"])
def test_methods_with_needs_of_their_own(method: str, out: Path) -> None:
    changes = {"generator": "none"} if method == "crd" else {}
    result = go(out, method=method, data={"episodes": 2}, **changes)
    assert result.episodes is not None
    assert result.episodes["n"] == 2
    assert len(result.peers_top1) == (1 if method == "dml" else 0)


@needs_learn2learn
def test_one_episode_and_train_queries(command: Command, out: Path) -> None:
    """No interval for one; queries may come from what the support leaves of the training part."""
    options = [*TASKS, *SHORT, "data.episodes=1", "data.query_split=train", "--method", "kd"]
    code, table, _ = command(*options, folder=out)
    assert code == 0
    assert "+-" not in table


@needs_learn2learn
def test_from_python(tmp_path: Path) -> None:
    images, labels = torch.rand(90, 1, 8, 8), torch.arange(90) % 3
    settings = merge(RAW, {"data": {"ways": 2, "episodes": 2}})
    teacher = build("cnn_small", 3, 1)
    result = fskd.distill(teacher, "cnn_tiny", (images, labels), method="kd", settings=settings)
    assert result.episodes is not None
    assert result.episodes["n"] == 2
    with pytest.raises(SettingError, match=r"student: a network .* new one for every episode"):
        fskd.distill(
            teacher, build("cnn_tiny", 3, 1), (images, labels), method="kd", settings=settings
        )


# --- interruptions -------------------------------------------------------------------------------


class Stops(Screen):
    """Stops the run after some episodes, once each."""

    def __init__(self, at: set[int]) -> None:
        self.at = at

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        if record["phase"] == "episode" and record["step"] in self.at:
            self.at.remove(record["step"])
            raise KeyboardInterrupt


@needs_learn2learn
def test_goes_on_with_the_next_episode(out: Path, tmp_path: Path) -> None:
    whole, stops = go(out, method="kdplus"), Stops({1, 3})
    for done in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, stops, method="kdplus")
        records = only(tmp_path, "kdplus") / "episodes.jsonl"
        lines = records.read_text().splitlines()
        assert len(lines) == done
        with records.open("a") as stream:
            stream.write(lines[0][:40])  # as a kill would leave it
    resumed = go(tmp_path, stops, method="kdplus")
    assert not stops.at
    for name in ("top1", "nll", "tv_paths", "split_sha256", "episodes", "final_loss", "teacher"):
        assert getattr(whole, name) == getattr(resumed, name), name
    assert read(Path(resumed.path))["episodes"] == read(Path(whole.path))["episodes"]


@needs_learn2learn
def test_damaged_list_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, Stops({2}), method="ce")
    records = only(tmp_path, "ce") / "episodes.jsonl"
    records.write_text("[1]\n" + records.read_text())
    with pytest.raises(FskdError, match=r"episodes\.jsonl.*--force"):
        go(tmp_path, method="ce")
    session = Session(Runtime(out=str(tmp_path)))
    assert run(resolve(merge(RAW, {"method": "ce"})), session, force=True).episodes is not None


@needs_learn2learn
@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    """SIGKILL at two moments; the same episodes at the end, and nothing left over."""
    options = [*TASKS, "data.episodes=6", "budget.steps=60", "teacher.budget.steps=20"]
    base = [sys.executable, "-m", "fskd.run", *options, "runtime.save_every=0.05", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [*base, "--method", "kd", "--out", str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    for least in (1, 3):
        process, deadline = start("killed"), time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            files = list((tmp_path / "killed").glob("*/episodes.jsonl"))
            if files and files[0].read_text().count("\n") >= least:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    whole, killed = (only(tmp_path / name, "kd") for name in ("whole", "killed"))
    assert read(whole)["episodes"] == read(killed)["episodes"]
    assert {p.name for p in whole.iterdir()} == {p.name for p in killed.iterdir()}


# --- mistakes ------------------------------------------------------------------------------------


@needs_learn2learn
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.ways=11"], ["data.ways", "11", "at most 10"]),
        (["data.ways=1"], ["data.ways", "1", "greater than or equal to 2"]),
        (["data.shots=500"], ["data.shots", "500", "at most"]),
        (["data.queries=100"], ["data.queries", "100", "at most", "test part"]),
        (["data.queries=117", "data.query_split=train"], ["data.queries", "without the support"]),
        (["data.query_split=val"], ["data.query_split", "'val'", "'test' or 'train'"]),
        (["data.episodes=0"], ["data.episodes", "0", "greater than or equal to 1"]),
        (["data.shots=null"], ["data.shots", "none"]),
        (["data.val=10"], ["data.val", "10", "0 with episodic"]),
        (["teacher.data=subset"], ["teacher.data", "'subset'", "'full'"]),
        ([f"data.split_file={FILE}"], ["data.split_file", "none with episodic"]),
        (["data.sampler.ways=4"], ["data.ways and data.sampler.ways", "one of them"]),
        (["data.way=4"], ["data.way", "unknown setting"]),
        (["data.sampler.way=4"], ["data.sampler.way", "'ways' (nearest)"]),
    ],
)
def test_mistakes(options: list[str], words: list[str], command: Command, tmp_path: Path) -> None:
    code, table, said = command(*TASKS, *options, folder=tmp_path / "runs")
    assert (code, table) == (2, "")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("name", ["ways", "queries", "episodes", "query_split"])
def test_other_samplers_have_no_episodes(name: str, command: Command, tmp_path: Path) -> None:
    code, _, said = command("--set", f"data.{name}=5", folder=tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert f"data.{name}: 5" in said
    assert "episodic" in said


def test_without_learn2learn(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    code, _, said = command(*TASKS, folder=tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert "extra 'episodic'" in said
    assert "learn2learn==0.2.0" in said


def test_settings_are_in_the_key() -> None:
    """All of them, by either name; and runs without episodes keep the keys they had."""
    base = resolve(RAW).key()
    sampler = {"name": "episodic", "ways": 3, "queries": 5, "episodes": 4}
    same = {**RAW, "data": {"shots": 2, "sampler": sampler}}
    assert resolve(same).key() == base
    for change in ({"ways": 4}, {"queries": 6}, {"episodes": 5}, {"query_split": "train"}):
        assert resolve(merge(RAW, {"data": change})).key() != base
    again = resolve(resolve(RAW).model_dump(mode="json"))
    assert again.key() == base
    assert set(resolve().model_dump()["data"]["sampler"]) == {"name"}
