"""``python -m fskd.split``: every command, and every mistake as one line with exit code 2."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fskd.data.datasets.base import load
from fskd.data.manifest import NAME, read_manifest, shipped
from fskd.data.split_files import read
from fskd.run import main as run_main
from fskd.split import main

Command = Callable[..., tuple[int, str, str]]
DIGITS = shipped() / "digits"
SEED0 = str(DIGITS / "stratified-seed0.npz")


@pytest.fixture
def split(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Calls the command line in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(options))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_help(split: Command) -> None:
    code, text, _ = split("--help")
    assert code == 0
    for word in ("make", "verify", "show", "export", "import", "diff", "dedupe", "Examples"):
        assert word in text


# --- make and verify ---------------------------------------------------------------------------


def test_make_gives_the_committed_bytes(split: Command, tmp_path: Path) -> None:
    code, said, _ = split("make", "--dataset", "digits", "--seeds", "0-1,4", "--out", "own")
    assert code == 0
    entries = read_manifest(tmp_path / "own")
    assert list(entries) == [f"digits/stratified-seed{k}.npz" for k in (0, 1, 4)]
    for name, entry in entries.items():
        assert (tmp_path / "own" / name).read_bytes() == (shipped() / name).read_bytes()
        assert entry.order_sha256 in said
        assert entry.command == (
            "python -m fskd.split make --dataset digits --sampler stratified --seeds 0-1,4"
        )
    assert said.count(" written") == 3
    assert said.count(" s  ") == 3
    before = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.*")}
    assert split("make", "--seeds", "0-1,4", "--out", "own")[1].count(" unchanged") == 3
    assert before == {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.*")}


def test_make_with_a_sampler_that_reads_a_teacher(
    split: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fskd.data.samplers.base import Sampler, samplers
    from fskd.types import Pool

    class Confident(Sampler):
        reads = frozenset({"logits"})

        def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
            assert pool.embeddings is None
            assert pool.logits is not None
            return np.argsort(pool.logits.max(1).values.numpy()).astype(np.int64)

    samplers.names()
    monkeypatch.setitem(samplers._parts, "confident", Confident)
    options = ["make", "--sampler", "confident", "--seeds", "2", "--set", "teacher.budget.steps=3"]
    code, said, told = split(*options, "runtime.out=teachers")
    assert (code, said.count(" written")) == (0, 1)
    assert "confident ranked 1,198 images by cnn_small in" in told
    made = read(tmp_path / "data_splits/digits/confident-seed2.npz")
    assert made.teacher is not None
    (teacher,) = (tmp_path / "teachers").glob("digits-cnn_small-*")
    assert teacher.name.endswith(made.teacher["key"])
    assert " unchanged" in split(*options, "runtime.out=teachers")[1]
    code, said, _ = split("verify", "data_splits")
    assert code == 0
    assert "chosen by cnn_small" in said


def test_verify(split: Command, tmp_path: Path) -> None:
    code, said, _ = split("verify")
    assert code == 0
    assert said.count(" ok") == len(read_manifest(shipped()))
    shutil.copytree(shipped(), tmp_path / "own")
    for path in (tmp_path / "own").rglob("*.npz"):
        if "stratified-seed" not in path.name or path.parent.name != "digits":
            path.unlink()
    raw = json.loads((tmp_path / "own" / NAME).read_text())
    raw["files"] = {k: v for k, v in raw["files"].items() if k.startswith("digits/stratified-")}
    (tmp_path / "own" / NAME).write_text(json.dumps(raw))
    assert split("verify", "own")[0] == 0
    victim = tmp_path / "own/digits/stratified-seed3.npz"
    whole = victim.read_bytes()
    for place in (0, 30, 100, 1000, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        victim.write_bytes(damaged)
        code, table, said = split("verify", "own")
        assert code == 2
        assert table.count(" ok") == 9
        assert said.startswith("error: 1 of 10 files failed; digits/stratified-seed3.npz: ")
        assert said.count("\n") == 1
        assert split("verify", str(victim))[0] == 2
    victim.unlink()
    assert "not there" in split("verify", "own")[2]


def test_one_changed_byte_stops_a_run(
    split: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split("make", "--out", "own")
    victim = tmp_path / "own/digits/stratified-seed0.npz"
    damaged = bytearray(victim.read_bytes())
    damaged[500] ^= 1
    victim.write_bytes(damaged)
    options = ["--method", "ce", "--steps", "1", "--out", str(tmp_path / "runs"), "--quiet"]
    code = run_main([*options, "--set", f"data.splits={tmp_path / 'own'}"])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("error: digits/stratified-seed0.npz: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# --- show, export, diff ------------------------------------------------------------------------


def test_show(split: Command, tmp_path: Path) -> None:
    code, said, _ = split("show", SEED0, "--shots", "3")
    assert code == 0
    assert "30 of 1198 digits images" in said
    assert said.count("     3 ########################################") == 10
    with Image.open(tmp_path / "stratified-seed0-3shot.png") as sheet:
        assert sheet.size == (3 * 58 + 2, 10 * 58 + 2)
        pixels = np.asarray(sheet)
    images = load("digits").train
    order = read(Path(SEED0)).order
    first = order[images.targets[order] == 4][0]
    cell = pixels[4 * 58 + 2 : 5 * 58, 2:58, 0]
    np.testing.assert_array_equal(cell[3::7, 3::7], np.asarray(images.images)[first, 0])
    assert split("show", SEED0, "--n", "25", "--png", "a/b.png")[0] == 0
    assert (tmp_path / "a/b.png").exists()


def test_export(split: Command, tmp_path: Path) -> None:
    order = read(Path(SEED0)).order.tolist()
    rows = list(csv.DictReader(io.StringIO(split("export", SEED0, "--n", "7")[1])))
    assert [int(row["index"]) for row in rows] == order[:7]
    found = json.loads(split("export", SEED0, "--format", "json", "--fraction", "0.1")[1])
    assert found["indices"] == order[:120]
    assert found["order_sha256"] == read(Path(SEED0)).sha256
    for form, word in (("hf", "train_set.select(indices)"), ("torch", "Subset(train_set,")):
        code, said, _ = split("export", SEED0, "--format", form, "--shots", "2")
        assert code == 0
        assert word in said
        assert json.loads((tmp_path / "stratified-seed0-2shot.json").read_text()) == order[:20]
        (tmp_path / "stratified-seed0-2shot.json").unlink()
    assert split("export", SEED0, "--to", "all.csv")[0] == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1199


def test_the_torch_snippet_runs(split: Command) -> None:
    import torch

    code, said, _ = split("export", SEED0, "--format", "torch", "--n", "4")
    scope = {"torch": torch, "train_set": list(range(1198))}
    exec(said, scope)
    subset = scope["subset"]
    assert code == 0
    assert isinstance(subset, torch.utils.data.Subset)
    assert [subset[i] for i in range(4)] == read(Path(SEED0)).order[:4].tolist()


def test_diff(split: Command) -> None:
    other = str(DIGITS / "stratified-seed1.npz")
    code, said, _ = split("diff", SEED0, other, "--fraction", "0.1,1")
    assert code == 0
    a, b = (set(read(Path(path)).order[:120].tolist()) for path in (SEED0, other))
    row = next(line.split() for line in said.splitlines() if line.startswith("0.1"))
    assert row[:5] == ["0.1", "120", str(len(a & b)), "12.0", f"{len(a & b) / len(a | b):.3f}"]
    assert sum(map(int, row[5:])) == len(a & b)
    assert next(line for line in said.splitlines() if line.startswith("1 ")).split()[4] == "1.000"


# --- import ------------------------------------------------------------------------------------


def test_import_and_run(split: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = load("digits").train
    chosen = [int((images.targets == k).nonzero()[5]) for k in range(10)]
    (tmp_path / "theirs.json").write_text(json.dumps({"label": chosen}))
    code, said, _ = split("import", "theirs.json", "--dataset", "digits", "--name", "theirs")
    assert code == 0
    made = read(tmp_path / "data_splits/digits/imported-theirs.npz")
    assert made.order[:10].tolist() == chosen
    assert (made.sampler, made.settings) == ("imported", {"name": "theirs", "given": 10})
    assert made.sha256 in said
    options = said.splitlines()[1].partition("fskd.run ")[2].split()
    more = ["--method", "ce", "--steps", "1", "--out", str(tmp_path / "runs")]
    assert run_main([*options, *more]) == 0
    assert "10 digits images (digits/imported-theirs.npz, split" in capsys.readouterr().out
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["split_sha256"] == made.sha256
    assert run_main([*options[:2], "--shots", "1", *options[4:], *more, "--quiet"]) == 0


# --- dedupe ------------------------------------------------------------------------------------


def test_dedupe(split: Command, tmp_path: Path) -> None:
    code, said, _ = split("dedupe", "--dataset", "digits", "--threshold", "0.02")
    assert code == 0
    assert "of 599 test images" in said
    text = (tmp_path / "duplicates-digits.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows
    assert all(float(row["distance"]) <= 0.02 for row in rows)


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["Missing command"]),
        (["mkae"], ["No such command 'mkae'"]),
        (["make", "--seeds", "3-1"], ["--seeds", "'1'", "at least 3"]),
        (["make", "--seeds", "x"], ["--seeds", "'x'"]),
        (["make", "--sampler", "stratifid"], ["'stratified' (nearest)"]),
        (["make", "--dataset", "digit"], ["'digits' (nearest)"]),
        (["make", "--set", "optim.lrr=1"], ["optim.lrr"]),
        (["make", "--dataset", "cifar10"], ["data.root"]),
        (["make", "--out", "file/x"], ["--out", "file/x"]),
        (["verify", "nowhere"], ["there is no such file|not there"]),
        (["verify", "empty"], ["no split files"]),
        (["verify", "file"], ["1 of 1 files failed", "damaged"]),
        (["show", "absent.npz"], ["absent.npz", "no such file"]),
        (["show", "file"], ["file", "damaged"]),
        (["show", SEED0, "--shots", "300"], ["data.shots", "300", "at most"]),
        (["show", SEED0, "--n", "2000"], ["--n", "2000", "at most 1198"]),
        (["show", SEED0, "--n", "0"], ["--n"]),
        (["show", SEED0, "--fraction", "1.5"], ["--fraction", "1.5"]),
        (["show", SEED0, "--fraction", "0.5", "--n", "3"], ["--fraction and --n"]),
        (["export", SEED0, "--format", "xml"], ["--format", "'xml'", "csv, json, hf, torch"]),
        (["export", SEED0, "--to", "file/x"], ["--to", "file"]),
        (["import", "file", "--name", "a"], ["file", "no list of indices"]),
        (["import", "list", "--name", "../a"], ["--name", "'../a'"]),
        (["import", "list", "--name", "a"], ["list", "index 7 occurs 2 times"]),
        (["diff", SEED0, "absent.npz"], ["absent.npz"]),
        (["diff", SEED0, SEED0, "--fraction", "0.1,x"], ["--fraction", "0.1,x"]),
        (["diff", SEED0, SEED0, "--fraction", "2"], ["--fraction", "2"]),
        (["dedupe", "--dataset", "digits", "--threshold", "3"], ["--threshold"]),
    ],
)
def test_mistakes(options: list[str], words: list[str], split: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nothing")
    (tmp_path / "list").write_text("7 8 7")
    (tmp_path / "empty").mkdir()
    code, _, said = split(*options)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert any(part in said for part in word.split("|"))


def test_a_list_is_not_overwritten(split: Command, tmp_path: Path) -> None:
    for text, extra, code in (("1 2", [], 0), ("1 3", [], 2), ("1 3", ["--force"], 0)):
        (tmp_path / "list").write_text(text)
        assert split("import", "list", "--name", "a", *extra)[0] == code


def test_help_is_quick() -> None:
    """Torch is imported by the commands only."""
    code = "import sys, fskd.split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
