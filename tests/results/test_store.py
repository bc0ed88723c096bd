"""Run directories: what is written can be read, and is never half there."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from fskd.errors import FskdError, SettingError
from fskd.results.store import (
    MetricsLog,
    Result,
    RunDir,
    check_writable,
    replacing,
    write_text,
)

NEEDED: dict[str, Any] = {
    "key": "abc123",
    "config": {"method": {"name": "kd"}, "seed": 3},
    "n_train": 50,
    "num_classes": 10,
    "data_sha256": "d" * 64,
    "test_sha256": "e" * 64,
    "split_sha256": "f" * 64,
    "top1": 0.123456789012345,
    "nll": 2.5,
    "ece": 1e-9,
    "train_top1": 1.0,
    "steps": 100,
    "epochs": 12.5,
    "student_rows": 6400,
    "teacher_queries": 3200,
}
FULL = NEEDED | {
    "top5": 0.5, "val_top1": 0.25, "teacher": {"name": "t", "top1": 0.9, "n_train": None},
    "agreement": 0.75, "tv_train": 0.1, "tv_test": 0.2, "tv_paths": 0.3, "phases": {"main": 100},
    "final_loss": {"ce": 0.1, "kd": 0.2}, "peers_top1": [0.1, 0.2], "seconds": {"train": 1.5},
    "versions": {"python": "3.11"}, "device": "cuda:0", "processes": 2,
    "precision": "bf16-mixed", "split_file": "digits/x-seed0.npz", "split_queries": 1198,
    "episodes": {"n": 2, "std": 0.1, "interval": None, "top1": [0.1, 0.2]},
    "measured": {"ema": {"top1": 0.5, "nll": 1.5, "ece": 0.1}}, "n_unlabelled": 30,
    "searches": [{"epoch": 50, "alpha": 0.5, "side": "half", "divergence": 1.5, "rows": 9}],
    "procedure": {"dropped": ["layer1.1"]},
    "classes": ["cat", "dog"], "files": {"train": {"files": 9, "left_out": {".svg": 2}}},
    "notes": ["prefix module. stripped"], "doubts": ["all images are equal"],
}  # fmt: skip


# --- Result ------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [NEEDED, FULL], ids=["needed", "full"])
def test_round_trip(values: dict[str, Any]) -> None:
    """JSON and back, every field, to the last digit; the path is where it was found."""
    result = Result(**values, path="old/place")
    again = Result.from_json(result.to_json(), "new/place")
    assert asdict(again) == asdict(result) | {"path": "new/place"}
    assert "place" not in result.to_json()
    assert (again.method, again.seed) == ("kd", 3)


def test_every_field_is_covered() -> None:
    """The round trip above leaves no field out."""
    assert set(FULL) == {f.name for f in fields(Result)} - {"path", "format"}


def test_newer_keys_are_ignored() -> None:
    """What a later version adds does not stop this one."""
    raw = json.loads(Result(**FULL).to_json()) | {"energy": 12, "path": "elsewhere"}
    assert Result.from_json(json.dumps(raw), "here") == Result(**FULL, path="here")


# --- replacing ---------------------------------------------------------------------------------


def test_replacing(tmp_path: Path) -> None:
    """The old file until the block ends, then the new one, and nothing else."""
    path = tmp_path / "result.json"
    for text in ("old", "new"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["result.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, "old"])
def test_exception_while_replacing(tmp_path: Path, old: str | None) -> None:
    """The old file stays (or none), and no temporary one."""
    path = tmp_path / "result.json"
    if old is not None:
        path.write_text(old)

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ([] if old is None else ["result.json"])
    assert old is None or path.read_text() == old


KILLED = """
import os, signal, sys
from pathlib import Path
from fskd.results.store import replacing
with replacing(Path(sys.argv[1])) as temporary:
    with temporary.open("w") as stream:
        stream.write("half of it")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("old", [None, "old"])
def test_kill_while_replacing(tmp_path: Path, old: str | None) -> None:
    """A killed writer leaves the old file; its temporary file is not taken for one of ours."""
    folder = RunDir(tmp_path)
    if old is not None:
        folder.result.write_text(old)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder.result)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.result.exists() == (old is not None)
    assert old is None or folder.result.read_text() == old
    assert len(list(tmp_path.glob(".result.json.*.tmp"))) == 1
    folder.drop_temporaries()
    assert os.listdir(tmp_path) == ([] if old is None else ["result.json"])


def test_write_text(tmp_path: Path) -> None:
    """UTF-8, at one stroke."""
    write_text(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()


# --- check_writable ----------------------------------------------------------------------------


def test_writable(tmp_path: Path) -> None:
    """The folder is made, and nothing is left in it."""
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("below", ["", "runs", "runs/deeper"])
def test_not_writable(tmp_path: Path, below: str) -> None:
    """A regular file is in the way: the setting, the place and the reason, in one line."""
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(SettingError, match=r"^out: .*file.* a folder that can be written \(.+\)$"):
        check_writable(blocked / below)
    with pytest.raises(SettingError, match=r"^cache: "):
        check_writable(blocked / below, "cache")
    assert blocked.read_text() == "x"


# --- RunDir ------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    """None while unfinished, then the result with its place."""
    folder = RunDir(tmp_path)
    assert folder.load() is None
    assert RunDir(tmp_path / "absent").load() is None
    write_text(folder.result, Result(**FULL).to_json())
    assert folder.load() == Result(**FULL, path=str(tmp_path))


WHOLE = Result(**FULL).to_json()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 64, b"\xff\xfe", WHOLE[: len(WHOLE) // 2].encode(), b"null", b"3", b"[1, 2]",
        b'"text"', b"{}", b'{"key": "abc"}', b"<html>",
    ],
)  # fmt: skip
def test_damaged_result(tmp_path: Path, content: bytes) -> None:
    """One line that names the file and the way out."""
    folder = RunDir(tmp_path)
    folder.result.write_bytes(content)
    with pytest.raises(FskdError, match=r"result\.json: not a result file .*delete") as caught:
        folder.load()
    assert "\n" not in str(caught.value)


def test_unreadable_result(tmp_path: Path) -> None:
    """A folder of that name."""
    folder = RunDir(tmp_path)
    folder.result.mkdir()
    with pytest.raises(FskdError, match="not a result file"):
        folder.load()


def test_clear(tmp_path: Path) -> None:
    """All that a run writes goes; what it does not know stays."""
    folder = RunDir(tmp_path)
    for path in (folder.state, folder.metrics, folder.student, folder.result):
        path.write_text("x")
    for name in ("peer1.safetensors", ".state.ckpt.abc.tmp", "notes.txt"):
        (tmp_path / name).write_text("x")
    folder.clear()
    assert os.listdir(tmp_path) == ["notes.txt"]
    folder.clear()


# --- MetricsLog --------------------------------------------------------------------------------


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_log_appends(tmp_path: Path) -> None:
    """One JSON object a line, readable while the run goes on."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "ce": 0.1 * step})
        assert steps(path) == list(range(1, step + 1))
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("saved", "kept"), [(0, []), (10, [5, 10]), (12, [5, 10]), (99, [5, 10, 15])]
)
def test_log_after_resume(tmp_path: Path, saved: int, kept: list[int]) -> None:
    """Lines after the saved step are written anew, so none is there twice."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15)))
    log = MetricsLog(path, saved)
    assert steps(path) == kept
    log.write({"step": 100})
    assert steps(path) == [*kept, 100]


@pytest.mark.parametrize(
    "last", ['{"step": 10, "ce": 0.', '{"st', "{", '{"ce": 1}', "10", "\0\0\0\0", '{"step": null}']
)
def test_cut_off_line(tmp_path: Path, last: str) -> None:
    """What a kill cut off is dropped, and the next line starts on its own."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n' + last)
    log = MetricsLog(path, 20)
    log.write({"step": 25})
    assert steps(path) == [5, 25]


def test_complete_last_line_without_its_end(tmp_path: Path) -> None:
    """Only the newline was cut off: the line counts and the next one is not glued to it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 10}')
    MetricsLog(path, 20).write({"step": 25})
    assert steps(path) == [5, 10, 25]


def test_no_log() -> None:
    """Processes other than the first write nothing."""
    MetricsLog(None).write({"step": 1})


# --- imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["results", "results.summary", "results.tables"])
def test_no_torch(module: str) -> None:
    """Results are read without torch, so at once."""
    code = f"import sys, fskd.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
