"""Whole runs with unlabelled images: from Python, through the command line, and on the way."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import fskd
from fskd.config import Runtime
from fskd.errors import DataError, FskdError, SettingError
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.calibrate import Planner
from fskd.runs.prepare import prepare
from fskd.runs.runner import run
from fskd.runs.screen import Screen
from fskd.runs.session import Session

Command = Callable[..., tuple[int, str, str]]
MOVED = {"data": {"augment": {"affine": 1.0}}}
REST = {"data": {"unlabelled": "rest"}}


class TwoViews(Method):
    """Likes equal predictions for two views of an image."""

    seen: list[torch.Tensor]

    class Settings(MethodSettings):
        weight: float = 1.0

    passes = (student("logits"),)
    needs = Needs(unlabelled=2)

    def terms(self, step: Step) -> Terms:
        rows = step.on("unlabelled")
        TwoViews.seen.append(step.batch.inputs[step.batch.part("unlabelled")])
        first, second = rows.student.logits.chunk(2)
        return {"views": Term(F.mse_loss(first, second))}


@pytest.fixture
def two_views() -> Iterator[type[TwoViews]]:
    methods.names()
    methods._parts["two_views"] = TwoViews
    TwoViews.seen = []
    yield TwoViews
    del methods._parts["two_views"]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"")
    return folder


class Told(Screen):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def go(out: Path, *layers: dict[str, Any], screen: Screen | None = None) -> Result:
    raw: dict[str, Any] = {}
    for layer in layers:
        raw = merge(raw, layer)
    return run(resolve(raw), Session(Runtime(out=str(out)), screen or Screen()))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "kd"},
        {"method": "kdplus"},
        {"method": "kdplus", "generator": {"name": "mixup", "pairs": "different_class"}},
        {"method": "kdplus", "generator": {"name": "cutmix", "when": "alternate"}},
        {"method": "kdplus", "generator": {"name": "mixup", "share": 1.0}},
        {"method": "mixup+kdplus"},
        {"method": "rkd"},
        {"method": "at"},
        {"method": "dml"},
        {"method": "crd+kd", "generator": "none"},
        {"method": "sskd+kdplus"},
        {"method": "tfkd_reg+kdplus"},
    ],
    ids=str,
)
def test_methods(change: dict[str, Any], out: Path, tiny: dict[str, Any]) -> None:
    """Rows and cost are what the estimate says; the number of images is in the result."""
    result = go(out, tiny, REST, change)
    assert result.n_unlabelled == 1198 - 120
    cost = Planner().cost(resolve(merge(merge(tiny, REST), change)))
    assert cost.student_rows == result.student_rows
    if change["method"] in ("kd", "kdplus", "rkd", "at") and "alternate" not in str(change):
        assert cost.teacher_queries == result.teacher_queries
        assert result.student_rows == 6 * 64


def test_what_the_teacher_is_asked(out: Path, tiny: dict[str, Any]) -> None:
    """Logits of labelled images are remembered, those of others are asked for in every step."""
    longer = {"budget": {"steps": 10}, "method": "kd"}
    assert go(out, tiny, longer).teacher_queries == 120
    assert go(out, tiny, longer, REST).teacher_queries == 120 + 10 * 32


def test_one_line_says_how_many(out: Path, tiny: dict[str, Any]) -> None:
    told = Told()
    go(out, tiny, {"method": "kd", "seed": 5, "data": {"unlabelled": 77}}, screen=told)
    line = "77 unlabelled images of the training set; 32 beside 32 labelled ones a step"
    assert told.lines.count(line) == 1


def test_two_views(out: Path, tiny: dict[str, Any], two_views: type[TwoViews]) -> None:
    own = {"unlabelled_share": 0.75, "augment": {"affine": 0.3}}
    with_views = {"method": "two_views", "data": own, "teacher": None}
    result = go(out, tiny, REST, with_views)
    assert result.student_rows == 6 * 64
    for rows in two_views.seen:
        assert len(rows) == 48
        first, second = rows.chunk(2)
        assert not torch.equal(first, second)
        # The same pictures in the same order: each is most like its other view.
        nearest = torch.cdist(first.flatten(1), second.flatten(1)).argmin(1)
        assert (nearest == torch.arange(24)).float().mean() > 0.7


def test_two_views_are_refused(tiny: dict[str, Any], two_views: type[TwoViews]) -> None:
    with pytest.raises(SettingError, match=r"since two_views needs some") as error:
        resolve(tiny, {"method": "two_views"})
    assert "--unlabelled" in str(error.value)
    with pytest.raises(SettingError, match="2 views of two_views are equal"):
        resolve(tiny, REST, {"method": "kd+two_views"})
    with pytest.raises(SettingError, match=r"teacher.method: .* labels alone"):
        resolve(tiny, {"teacher": {"method": "two_views"}})


@pytest.mark.parametrize("size", [1, 2])
def test_batches_too_small(
    size: int, out: Path, tiny: dict[str, Any], two_views: type[TwoViews]
) -> None:
    raw = merge(merge(tiny, REST), merge(MOVED, {"method": "two_views"}))
    with pytest.raises(SettingError, match=r"optim.batch_size: .* a labelled row and 2 unlab"):
        prepare(resolve(raw, {"optim": {"batch_size": size}}), out)


def test_stopped_and_resumed(tiny: dict[str, Any], out: Path, tmp_path: Path) -> None:
    class Stops(Screen):
        def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
            if record["step"] == 3 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt

    raw = merge(merge(merge(tiny, REST), MOVED), {"method": "kdplus", "optim": {"ema": 0.9}})
    whole = go(out, raw)
    session = Session(Runtime(out=str(tmp_path), save_every=0, log_every=1), Stops())
    with pytest.raises(KeyboardInterrupt):
        run(resolve(raw), session)
    resumed = run(resolve(raw), session)
    for name in ("student", "ema"):
        first, second = (Path(r.path) / f"{name}.safetensors" for r in (whole, resumed))
        assert first.read_bytes() == second.read_bytes(), name
    assert whole.measured == resumed.measured
    assert whole.teacher_queries == resumed.teacher_queries


class TestCommandLine:
    def test_folder(
        self, command: Command, tiny_options: list[str], album: Path, tmp_path: Path
    ) -> None:
        options = [*tiny_options, "--method", "kd", "--unlabelled", str(album)]
        code, table, said = command(*options, folder=tmp_path)
        assert code == 0
        assert "40 without labels" in " ".join(table.split())
        lines = [line for line in said.splitlines() if "unlabelled images" in line]
        assert len(lines) == 1 or "broken.png" in said
        assert "1 of 41 files" in " ".join(said.split())
        (path,) = tmp_path.glob("digits-cnn_tiny-kd-*/result.json")
        result = json.loads(path.read_text())
        assert result["n_unlabelled"] == 40
        assert len(result["config"]["inputs_sha256"]["unlabelled"]) == 64
        # Found again wherever the folder is.
        moved = album.rename(tmp_path / "moved")
        code, _, said = command(*options[:-1], str(moved), folder=tmp_path)
        assert code == 0
        assert "already finished" in said

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--unlabelled", "nowhere"], "data.unlabelled: 'nowhere' is not accepted"),
            (["--unlabelled", "0"], "data.unlabelled"),
            (["--unlabelled", "5000", "--fraction", "0.1"], "at most 1078"),
            (["--unlabelled", "rest", "--fraction", "1"], "a smaller subset"),
            (["--unlabelled", "rest", "--method", "ce"], "reads no images without labels"),
            (["--unlabelled", "5", "--set", "data.unlabelled_share=1"], "data.unlabelled_share"),
            (["--set", "data.unlabelled_share=0.2"], "none without unlabelled"),
            (["--unlabelled", "5", "--n", "50", "--set", "optim.batch_size=2"], "optim.batch_size"),
        ],
    )
    def test_mistakes(self, options: list[str], words: str, command: Command) -> None:
        code, printed, said = command(*options)
        assert code == 2
        assert printed == ""
        assert words in " ".join(said.split())
        assert len(said.strip().splitlines()) == 1

    def test_protocol_axis(self, command: Command, tmp_path: Path) -> None:
        file = tmp_path / "p.yaml"
        file.write_text(
            "name: p\nbase: {method: kd, data: {fraction: 0.1}, budget: {steps: 2},"
            " teacher: {budget: {steps: 20}}}\naxes: {unlabelled: [null, rest, 50]}\n"
        )
        code, table, _ = command(str(file), folder=tmp_path)
        assert code == 0
        assert "unlabelled=rest" in table


class TestFromPython:
    def distil(self, **given: Any) -> Result:
        settings = {"teacher": {"budget": {"steps": 2}}}
        return fskd.distill(
            "cnn_tiny", "cnn_tiny", "digits", fraction=0.1, steps=2, method="kd",
            settings=settings, **given,
        )  # fmt: skip

    @pytest.mark.parametrize("kind", ["rest", "number", "path", "array", "tensor", "float"])
    def test_kinds(self, kind: str, album: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        given: dict[str, Any] = {
            "rest": "rest", "number": 30, "path": album, "array": images,
            "tensor": torch.from_numpy(images)[:, None], "float": images / 255,
        }  # fmt: skip
        result = self.distil(unlabelled=given[kind])
        assert result.n_unlabelled == {"rest": 1078, "path": 40}.get(kind, 30)

    def test_images_are_in_the_key(self) -> None:
        images = np.zeros((30, 8, 8), np.uint8)
        keys = {self.distil(unlabelled=images + i).key for i in range(2)}
        assert len(keys | {self.distil().key}) == 3

    @pytest.mark.parametrize("bad", [np.zeros((3, 9, 9)), np.zeros(4), np.ones((2, 8, 8)) * 3])
    def test_bad_images(self, bad: np.ndarray) -> None:
        with pytest.raises((SettingError, DataError), match="unlabelled"):
            self.distil(unlabelled=bad)

    def test_bad_number(self) -> None:
        with pytest.raises(FskdError, match=r"data\.unlabelled"):
            self.distil(unlabelled=0)


def test_no_unlabelled_images_changes_nothing(out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": "kdplus"})
    assert result.n_unlabelled == 0
    assert "unlabelled" not in result.config["data"]
    assert set(load_file(Path(result.path) / "student.safetensors"))
