"""Finished runs in places that fsspec knows: copied whole, once, both ways."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from sweeps import end_state, protocol

from fskd.engines.mirror import Mirror
from fskd.errors import SettingError
from fskd.sweep import main


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def run_folder(folder: Path, result: str | None = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "student.safetensors").write_bytes(b"weights")
    (folder / ".lock").touch()
    if result is not None:
        (folder / "result.json").write_text(result)
    return folder


def test_there_and_back(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    mirror, there = Mirror("memory://runs"), "/runs/a"
    mirror.keep(run_folder(tmp_path / "here" / "a"))
    names = [path.removeprefix(f"{there}/") for path in store.find(there)]
    assert names == ["result.json", "student.safetensors"]
    mirror.fetch(tmp_path / "other" / "a")
    assert (tmp_path / "other" / "a" / "result.json").read_text() == "{}"
    assert (tmp_path / "other" / "a" / "student.safetensors").read_bytes() == b"weights"
    # The first to arrive stays, there and here.
    mirror.keep(run_folder(tmp_path / "late" / "a", "[]"))
    mirror.fetch(tmp_path / "late" / "a")
    assert store.cat(f"{there}/result.json") == b"{}"
    assert (tmp_path / "late" / "a" / "result.json").read_text() == "[]"


def test_only_finished_runs(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    mirror = Mirror("memory://runs")
    mirror.keep(run_folder(tmp_path / "a", None))
    assert store.find("/runs") == []
    store.pipe("/runs/b/student.safetensors", b"half")
    mirror.fetch(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_place_that_cannot_be_opened() -> None:
    with pytest.raises(SettingError, match="--mirror"):
        Mirror("nosuch://bucket/runs")


def test_machines_that_share_a_mirror_only(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, place = protocol(tmp_path, seeds=1), tmp_path / "mirror"

    def sweep(out: str, *options: str) -> str:
        where = [
            "--out",
            str(tmp_path / out),
            "--mirror",
            f"file://{place}",
            "--workers",
            "1",
            "--no-report",
        ]
        assert main([str(file), *where, "--workers", "1", "--no-report", *options]) == 0
        return capsys.readouterr().out

    assert "1 of 1 runs finished; 1 made now" in sweep("one", "--only", "arm=ce")
    # The other machine has only the teacher to make, and its student.
    assert "2 of 2 runs finished; 2 made now" in sweep("two")
    assert end_state(tmp_path / "two").keys() == end_state(place).keys()
    assert "2 of 2 runs finished; 0 made now" in sweep("three")
    assert command(str(file), folder=tmp_path / "alone")[0] == 0
    assert end_state(tmp_path / "two") == end_state(tmp_path / "alone")
    # Runs that were finished before there was a mirror come into it, too.
    shutil.rmtree(place)
    assert "0 made now" in sweep("two")
    assert len(end_state(place)) == 2
