"""The command line: runs, repeats, comparisons, and every mistake as one line with exit code 2."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fskd.listing import print_parts
from fskd.methods.base import methods
from fskd.models.catalog import build
from fskd.runs.overview import Entry, overview

Command = Callable[..., tuple[int, str, str]]


def test_main_job(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    code, table, _ = command(*tiny_options, "--method", "kdplus", folder=tmp_path)
    assert code == 0
    for word in ("teacher", "cnn_small", "120 digits images", "top-1", "updates", "files"):
        assert word in table
    folders = {path.name.split("-")[1] for path in tmp_path.iterdir()}
    assert folders == {"cnn_small", "cnn_tiny"}
    (run,) = (path for path in tmp_path.iterdir() if "cnn_tiny" in path.name)
    names = {path.name for path in run.iterdir()}
    assert names == {".lock", "config.yaml", "metrics.jsonl", "result.json", "student.safetensors"}
    result = json.loads((run / "result.json").read_text())
    assert run.name.endswith(result["key"])
    assert result["steps"] == 6
    assert result["student_rows"] == 6 * 64
    assert result["teacher_queries"] == 120 + 6 * 32
    assert result["n_train"] == 120
    assert result["teacher"]["top1"] > 0.1
    for name in ("tv_train", "tv_test", "tv_paths", "agreement", "ece", "top1"):
        assert 0 <= result[name] <= 1
    assert result["top5"] is None
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [6]


def test_finished_run_is_not_repeated(command: Command, tiny_options: list[str]) -> None:
    command(*tiny_options)
    code, first, said = command(*tiny_options)
    assert code == 0
    assert "already finished" in said
    code, forced, said = command(*tiny_options, "--force")
    assert code == 0
    assert "student already finished" not in said
    top1 = [line for line in first.splitlines() if "top-1" in line]
    assert top1 == [line for line in forced.splitlines() if "top-1" in line]


def test_quiet(command: Command, tiny_options: list[str]) -> None:
    assert command(*tiny_options, "--seed", "9", "--quiet")[2] == ""


def test_methods_and_seeds_are_compared(command: Command, tiny_options: list[str]) -> None:
    code, table, _ = command(*tiny_options, "--method", "ce,kd,kdplus", "--seeds", "2")
    assert code == 0
    for pair in ("kd - ce", "kdplus - ce", "kdplus - kd"):
        assert f"paired difference {pair} on 120 images" in table
    assert "2 seeds" in table


def test_settings_of_compared_methods(
    command: Command, tiny_options: list[str], tmp_path: Path
) -> None:
    """A setting for all, and one for a single method."""
    code, _, said = command(
        *tiny_options, "method.temperature=2", "method.at.weight=7",
        "--method", "kd,kdplus+at,kdplus", "--quiet", folder=tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "method.temperature" in said  # which part of kdplus+at is meant?
    options = [*tiny_options, "method.at.weight=7", "--method", "kd,at", "--quiet"]
    code, _, said = command(*options, folder=tmp_path)
    assert (code, said) == (0, "")
    (folder,) = tmp_path.glob("*-at-*")
    assert json.loads((folder / "result.json").read_text())["config"]["method"]["weight"] == 7
    options = [*tiny_options, "method.temperature=2", "--method", "kd,kdplus", "--quiet"]
    code, _, said = command(*options, folder=tmp_path)
    assert (code, said) == (0, "")
    configs = [
        json.loads((folder / "result.json").read_text())["config"]["method"]
        for folder in tmp_path.glob("*-kd*")
    ]
    assert {"kd", "kdplus"} == {c["name"] for c in configs if c["temperature"] == 2}


def test_arms_are_told_apart_by_their_settings(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "temperatures.yaml"
    file.write_text(
        "base: {budget: {steps: 3}, method: kd, teacher: {budget: {steps: 20}},"
        " data: {shots: 1}}\n"
        "axes: {method.temperature: [1, 4], seed: [0, 1]}\n"
    )
    code, table, _ = command(str(file))
    assert code == 0
    assert "method.temperature=1.0" in table
    assert "kd (-, method.temperature=4.0) - kd (-, method.temperature=1.0)" in table
    assert "2 seeds" in table


def test_every_arm_is_checked_before_work(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("base: {method: ce}\naxes: {student: [cnn_tiny, nosuch, cnn_medium]}\n")
    code, _, said = command(str(file), folder=tmp_path / "runs")
    assert code == 2
    assert "nosuch" in said
    assert not (tmp_path / "runs").exists()


def test_protocol_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(
        "base: {budget: {steps: 3}, teacher: {budget: {steps: 20}}}\n"
        "axes: {data.shots: [1, 2], method: [kd, ce]}\n"
    )
    code, table, _ = command(str(file))
    assert code == 0
    assert table.count("paired difference") == 2


def test_chain_of_teachers(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(
        "base: {method: kd, data: {fraction: 0.1}, budget: {steps: 4},"
        " teacher: {budget: {steps: 20}}}\n"
        "chain: [cnn_small, cnn_medium, cnn_tiny]\n"
    )
    code, table, _ = command(str(file), folder=tmp_path / "runs")
    assert code == 0
    assert "cnn_medium, top-1" in table
    folders = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "runs").iterdir())
    assert folders == [
        "digits-cnn_medium-kd-10pct-s2000",
        "digits-cnn_small-ce-100pct-s1000",
        "digits-cnn_tiny-kd-10pct-s0",
    ]


def test_list_and_help(command: Command) -> None:
    code, listing, _ = command("--list", folder=None)
    assert code == 0
    for name in ("kdplus", "cutmix", "stratified", "tiny_imagenet", "resnet110", "timm"):
        assert name in listing
    code, only, _ = command("--list", "samplers", folder=None)
    assert code == 0
    assert only.splitlines()[0] == "samplers"
    assert only in listing
    code, text, _ = command("--help", folder=None)
    assert code == 0
    for word in ("--fraction", "--set", "Examples", "--teacher-checkpoint"):
        assert word in text


def test_kinds_that_are_not_there(command: Command) -> None:
    code, out, said = command("--list", "modls", folder=None)
    assert (code, out) == (2, "")
    assert said.startswith("error: --list: 'modls' is not accepted; expected one of methods, ")
    assert said.count("\n") == 1
    # Nothing, or an option, is no kind.
    assert command("--list", "--debug", folder=None)[0] == 0


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return overview()


@pytest.mark.parametrize("width", [80, 120, 160])
def test_methods_are_listed_with_paper_needs_and_cost(
    width: int, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fskd.runs.overview.overview", lambda: entries)
    text = StringIO()
    print_parts(Console(file=text, width=width), "methods")
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    head, rows = lines[0], [line.split() for line in lines]
    assert head.split() == ["method", "paper", "needs", "rows", "networks", "queries"]
    assert {row[0] for row in rows if row} >= {*methods.names(), "features", "mixing"}
    (kdplus,) = (line for line in lines if line.startswith(" kdplus "))
    assert "Deng and Zhang" in kdplus
    assert kdplus[head.index("rows") :].split()[1:] == ["1", "+", "teacher", "1", "(0.5)"]
    assert "…" not in text.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fraction", "1.5"], ["data.fraction", "1.5", "less than or equal to 1"]),
        (["--fraction", "0"], ["data.fraction", "greater than 0"]),
        (["--fraction", "a"], ["data.fraction", "'a'", "number"]),
        (["--shots", "2.5"], ["data.shots", "2.5", "integer"]),
        (["--seed", "x"], ["--seed", "'x'", "at least 0"]),
        (["--fractoin", "1"], ["--fractoin", "--fraction"]),
        (["--fraction", "0.5", "--shots", "3"], ["--fraction and --shots"]),
        (["--steps", "5", "--epochs", "3"], ["--steps and --epochs"]),
        (["--shots", "500"], ["data.shots", "500", "at most"]),
        (["--shots", "3", "--sampler", "uniform"], ["data.shots", "class-balanced"]),
        (["--n", "5000"], ["data.n", "5000", "at most 1198"]),
        (["--n", "9"], ["none of class"]),
        (["--fraction", "0.001"], ["none of class"]),
        (["--steps", "0"], ["budget.steps", "0"]),
        (["--seeds", "0"], ["--seeds", "'0'", "at least 1"]),
        (["--method", "kdplu"], ["method", "'kdplu'", "'kdplus' (nearest)"]),
        (["--method", "kd,"], ["method", "''"]),
        (["--generator", "mixpu"], ["generator", "'mixup' (nearest)"]),
        (["--dataset", "digit"], ["dataset", "'digits' (nearest)"]),
        (["--sampler", "unform"], ["sampler", "'uniform' (nearest)"]),
        (["--student", "resnet21"], ["student", "resnet21", "resnet20"]),
        (["--teacher", "cnn_smal"], ["teacher", "cnn_small"]),
        (["--teacher-data", "some"], ["teacher.data", "'some'", "'full' or 'subset'"]),
        (["--teacher-checkpoint", "absent.pth"], ["teacher.checkpoint", "absent.pth"]),
        (["--device", "cuda:x"], ["device", "cuda:x"]),
        (["--device", "tpu"], ["device", "'tpu'", "auto, cpu"]),
        (["--precision", "8"], ["runtime.precision", "8", "bf16-mixed"]),
        (["--set", "optim.lrr=3"], ["optim.lrr", "'lr' (nearest)"]),
        (["--set", "runtime.threads=3"], ["runtime.threads"]),
        (["--set", "nothing"], ["--set", "nothing"]),
        (["--set", "data.val=100000"], ["data.val", "at most"]),
        (["--dataset", "cifar10", "--data-root", "/nowhere"], ["data.root", "/nowhere"]),
        (["--dataset", "npz"], ["data.root"]),
        (["absent.yaml"], ["absent.yaml"]),
        (["--set", "method.nme=3"], ["method.nme"]),
        (["--method", "fitnet", "--set", "method.hint_index=9"], ["method.hint_index", "9"]),
        (["--method", "fsp"], ["method.fsp", "equal channels"]),
    ],
)
def test_mistakes(options: list[str], words: list[str], command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    code, table, said = command(*options, folder=folder)
    assert code == 2
    assert table == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    # Nothing was started.
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_where_there_is_none(command: Command) -> None:
    code, _, said = command("--device", "cuda")
    assert code == 2
    assert "'cuda'" in said
    assert "no CUDA GPU" in said


def test_unwritable_folder(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, said = command(folder=tmp_path / "file" / "runs")
    assert code == 2
    assert said.startswith("error: out: ")
    assert said.count("\n") == 1


class Evil:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_bad_checkpoints(command: Command, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"model": Evil(trap)}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"model": Evil(trap)}))
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00\x00")
    torch.save(build("cnn_small", 7, 1).state_dict(), tmp_path / "classes.pth")
    torch.save(build("cnn_tiny", 10, 1).state_dict(), tmp_path / "other.pth")
    for name, word in [
        ("evil.pth", "code"),
        ("bare.pth", "bare.pth"),
        ("short.safetensors", "short"),
        ("classes.pth", "7 classes"),
        ("other.pth", "other.pth"),
    ]:
        code, _, said = command("--teacher-checkpoint", str(tmp_path / name))
        assert code == 2, name
        assert said.count("\n") == 1
        assert "teacher.checkpoint" in said
        assert word in said
    assert not trap.exists()


def test_teacher_checkpoint(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in build("cnn_small", 10, 1).state_dict().items()}
    torch.save({"epoch": 3, "model": state}, tmp_path / "teacher.pth")
    options = [*tiny_options[:4], "--teacher-checkpoint", str(tmp_path / "teacher.pth")]
    code, table, _ = command(*options, folder=tmp_path / "runs")
    assert code == 0
    assert "given" in table
    # Another place of the same file is the same run.
    (tmp_path / "teacher.pth").rename(tmp_path / "moved.pth")
    options[-1] = str(tmp_path / "moved.pth")
    assert "already finished" in command(*options, folder=tmp_path / "runs")[2]


def test_divergence_says_where(command: Command, tmp_path: Path) -> None:
    options = ["--method", "ce", "--steps", "200", "--set", "optim.lr=1e9"]
    code, _, said = command(*options, folder=tmp_path)
    assert code == 1
    assert "step" in said
    assert "'ce'" in said
    assert "last good state" in said or "no state was saved" in said
    assert not list(tmp_path.glob("*/result.json"))


def test_diverged_last_update_is_no_result(command: Command, tmp_path: Path) -> None:
    options = ["--method", "ce", "--n", "20", "--steps", "1", "--set", "optim.lr=1e30"]
    code, _, said = command(*options, folder=tmp_path)
    assert code == 1
    assert "infinite or NaN" in said
    assert not list(tmp_path.glob("*/result.json"))


def test_edited_network_is_another_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for width in (4, 8):
        (tmp_path / "own_net.py").write_text(
            "from torch import nn\n\ndef net(num_classes):\n    return nn.Sequential("
            f"nn.Conv2d(1, {width}, 8), nn.Flatten(), nn.Linear({width}, num_classes))\n"
        )
        options = ["--student", "own_net:net", "--method", "ce", "--steps", "1", "--quiet"]
        assert command(*options, folder=tmp_path / "runs")[0] == 0
        keys = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(keys) == 2


def test_interrupt(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fskd.runs.prepare.prepare", stop)
    code, _, said = command("--quiet")
    assert code == 130
    assert said.startswith("error: stopped") or said.startswith("stopped")


def test_equal_runs_count_once(command: Command, tiny_options: list[str]) -> None:
    _, table, _ = command(*tiny_options, "--method", "kd,kd")
    assert "paired difference" not in table


def test_damaged_teacher_says_what_to_delete(
    command: Command, tiny_options: list[str], tmp_path: Path
) -> None:
    assert command(*tiny_options, "--quiet", folder=tmp_path)[0] == 0
    (weights,) = tmp_path.glob("*cnn_small*/student.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    code, _, said = command(*tiny_options, "--seed", "3", folder=tmp_path)
    assert code == 2
    assert f"delete {weights.parent}" in said


def test_debug_shows_the_traceback(command: Command) -> None:
    code, _, said = command("--fraction", "7", "--debug")
    assert code == 2
    assert "Traceback" in said


@pytest.mark.slow
def test_as_a_module(tmp_path: Path) -> None:
    """The way users call it, and quick help."""
    base = [sys.executable, "-m", "fskd.run"]
    done = subprocess.run(
        [*base, "--fraction", "2", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    code = "import sys, fskd.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
