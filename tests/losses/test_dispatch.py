"""Which path is chosen from a table of measurements."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fskd.losses import kd_loss
from fskd.losses.fused import dispatch, execute


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table, empty at first; the package's own is left out."""
    monkeypatch.setenv("FSKD_CACHE", str(tmp_path))
    dispatch.forget()
    execute._planned.cache_clear()
    yield tmp_path / "losses.json"
    dispatch.forget()
    execute._planned.cache_clear()


def entry(rows: int, classes: int, times: tuple[float, float, float], **more: Any) -> Any:
    """A row of a table."""
    reference, eager, compiled = times
    return {
        "device": "cpu", "dtype": "float32", "rows": rows, "classes": classes,
        "reference": reference, "eager": eager, "compiled": compiled, "compile_seconds": 3.0,
    } | more  # fmt: skip


def write(path: Path, *entries: Any) -> None:
    """Keep a table as ``--tune`` does."""
    path.write_text(json.dumps({"entries": entries}))
    dispatch.forget()


EAGER, REFERENCE, COMPILED = (9.0, 5.0, 4.0), (5.0, 9.0, 8.0), (9e4, 5e4, 1e3)


def test_nearest_shape_within_reach(cache: Path) -> None:
    write(cache, entry(64, 10, REFERENCE), entry(64, 1000, COMPILED), entry(4096, 10, EAGER))
    path = dispatch.best_path
    assert path("cpu", "float32", 64, 10) == "reference"
    assert path("cpu", "float32", 100, 20) == "reference"
    assert path("cpu", "float32", 100, 700) == "compiled"
    assert path("cpu", "float32", 2000, 5) == "eager"
    assert path("cpu", "float32", 64, 8000) == "compiled"
    assert path("cpu", "float32", 64, 8001) == "eager"
    assert path("cpu", "float64", 64, 10) == "eager"
    assert path("cuda", "float32", 64, 10) == "eager"


@pytest.mark.parametrize(
    ("times", "seconds", "expected"),
    [
        ((9.0, 5.0, 4.0), 3.0, "eager"),
        ((5.0, 5.0, 5.0), 0.0, "eager"),
        ((5.0, 9.0, 8.0), 0.0, "reference"),
        ((9e3, 6e3, 2e3), 11.9, "compiled"),
        ((9e3, 6e3, 2e3), 12.1, "eager"),
        ((9.0, 5.0, float("inf")), 0.0, "eager"),
    ],
)
def test_compiling_has_to_be_earned(
    times: tuple[float, float, float], seconds: float, expected: str
) -> None:
    assert dispatch.Entry("cpu", "float32", 64, 10, *times, seconds).best == expected


def test_own_measurements_win(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [entry(64, 10, EAGER), entry(64, 10, REFERENCE, dtype="float64")]
    monkeypatch.setattr(
        dispatch.resources, "files", lambda _: cache.parent / "shipped"
    )  # fmt: skip
    (cache.parent / "shipped").mkdir()
    write(cache.parent / "shipped" / "measured.json", *shipped)
    assert dispatch.best_path("cpu", "float32", 64, 10) == "eager"
    write(cache, entry(500, 10, REFERENCE))
    assert dispatch.best_path("cpu", "float32", 64, 10) == "reference"
    assert dispatch.best_path("cpu", "float64", 64, 10) == "reference"


def test_infinite_times_survive_the_file(cache: Path) -> None:
    write(cache, entry(64, 10, (9.0, 5.0, float("inf"))))
    assert dispatch.table()[0].compiled == float("inf")


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert dispatch.user_table() == Path(os.environ["FSKD_CACHE"]) / "losses.json"
    monkeypatch.delenv("FSKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert dispatch.user_table() == tmp_path / "x" / "fskd" / "losses.json"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"entries": 3}', b'{"entries": [3]}',
        b'{"entries": [{"device": "cpu"}]}',
        *(
            json.dumps({"entries": [entry(64, 10, EAGER) | wrong]}).encode()
            for wrong in ({"rows": 0}, {"rows": "64"}, {"classes": None}, {"eager": "fast"},
                          {"eager": None}, {"more": 1})
        ),
    ],
)  # fmt: skip
def test_a_broken_table_is_as_none(cache: Path, content: bytes) -> None:
    cache.write_bytes(content)
    dispatch.forget()
    student = torch.zeros(3, 2, requires_grad=True)
    kd_loss(student, torch.ones(3, 2)).backward()
    assert dispatch.best_path("cpu", "float32", 10**9, 10**9) == "eager"


def test_auto_takes_the_path(cache: Path, data: Any) -> None:
    inputs = data(real=4, dtype=torch.float32)
    student = inputs.student.requires_grad_()
    names = []
    for times in (REFERENCE, EAGER):
        write(cache, entry(7, 5, times))
        execute._planned.cache_clear()
        loss = kd_loss(student, *inputs[1:3])
        assert loss.grad_fn is not None
        names.append(loss.grad_fn.name())
    assert names[0] != "_KDLossBackward"
    assert names[1] == "_KDLossBackward"
