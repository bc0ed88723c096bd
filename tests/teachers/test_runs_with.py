"""Runs with several teachers, black boxes and tables, from the command line and from Python."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fskd import distill
from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.methods.kd import KD
from fskd.methods.words import Needs, each_teacher
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights, save_weights
from fskd.models.taps import FeatureNet
from fskd.resolve import resolve
from fskd.results.store import Result, RunDir
from fskd.runs.evaluate import predict, scores
from fskd.runs.prepare import identify, prepare
from fskd.runs.runner import run
from fskd.runs.session import Session
from fskd.teachers.ensemble import mean_logits
from fskd.types import DataSplits

Command = Callable[..., tuple[int, str, str]]


def results(folder: Path, method: str) -> list[Result]:
    found = (RunDir(path.parent).load() for path in folder.glob(f"*-{method}-*/result.json"))
    return [one for one in found if one is not None and one.config["student"] == "cnn_tiny"]


def test_two_networks_by_name(
    command: Command, tiny_options: list[str], out: Path, tmp_path: Path, digits: DataSplits
) -> None:
    options = [*tiny_options, "--method", "kd", "--teacher"]
    code, shown, errors = command(*options, "cnn_small+cnn_small", folder=tmp_path)
    assert code == 0, errors
    (result,) = results(tmp_path, "kd")
    teacher = result.teacher or {}
    assert teacher["name"] == "cnn_small+cnn_small" in shown
    first, second = teacher["members"]
    assert teacher["key"] == f"{first['key']}+{second['key']}"
    assert first["key"] != second["key"]
    several = resolve({"method": "kd", "teacher": {"name": "cnn_small+cnn_small"}}).teacher_runs()
    one = resolve({"method": "kd", "teacher": "cnn_small"}).teacher_run()
    assert several[0] == one
    assert [run.seed for run in several] == [1000, 1001]
    logits = []
    for member in (first, second):
        net = build("cnn_small", 10, 1)
        load_weights(net, RunDir(tmp_path / member["run"]).student)
        logits.append(predict(FeatureNet(net), digits.test, torch.device("cpu")))
        assert member["top1"] == scores(logits[-1], digits.test.targets)["top1"]
    assert teacher["top1"] == scores(mean_logits(logits), digits.test.targets)["top1"]
    assert result.agreement is not None
    assert result.tv_paths is not None
    assert result.teacher_queries == 2 * result.n_train
    code, _, errors = command(*options, "cnn_small", folder=tmp_path)
    assert code == 0
    assert "teacher cnn_small ce" not in errors
    single = next(r for r in results(tmp_path, "kd") if "members" not in (r.teacher or {}))
    assert (single.teacher or {})["key"] == first["key"]


def test_checkpoints_of_several(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    files = []
    for name in ("cnn_tiny", "cnn_small"):
        files.append(str(tmp_path / f"{name}.safetensors"))
        save_weights(build(name, 10, 1), files[-1])
    names = ["--method", "kd", "--teacher", "cnn_tiny+cnn_small", "--teacher-checkpoint"]
    code, _, errors = command(*tiny_options, *names, "+".join(files), folder=tmp_path)
    assert code == 0, errors
    (result,) = results(tmp_path, "kd")
    members = (result.teacher or {})["members"]
    assert [member["checkpoint"] for member in members] == files
    code, _, errors = command(*tiny_options, *names, files[0], folder=tmp_path)
    assert code == 2
    assert "2 networks need 2 checkpoints joined by +, not 1" in errors


@pytest.mark.parametrize("method", ["kd", "kdplus"])
def test_a_black_box(
    method: str, command: Command, tiny_options: list[str], tmp_path: Path, seen: list[Tensor]
) -> None:
    options = [*tiny_options, "--method", method, "--teacher", "boxes:ask"]
    code, shown, errors = command(*options, folder=tmp_path)
    assert code == 0, errors
    (result,) = results(tmp_path, method)
    teacher = result.teacher or {}
    assert teacher["name"] == "boxes:ask"
    assert len(teacher["key"]) == 64
    assert "top1" not in teacher
    assert [result.agreement, result.tv_test, result.tv_train, result.tv_paths] == [None] * 4
    assert "boxes:ask (given)" in shown
    asked = sum(len(images) for images in seen) - 2  # the probe, if no test before made it
    assert result.teacher_queries in (asked, asked + 2)
    limit = ["--set", f"teacher.queries={result.teacher_queries}"]
    code, _, errors = command(*options, *limit, folder=tmp_path)
    assert code == 0, errors
    limit = ["--set", f"teacher.queries={result.teacher_queries - 1}"]
    code, _, errors = command(*options, *limit, folder=tmp_path)
    assert code == 2
    assert f"expected at least {result.teacher_queries}, the rows" in errors


REFUSED: list[tuple[list[str], str]] = [
    (["--teacher", "cnn_small+cnn_tiny", "--method", "at"], "method.at: an ensemble"),
    (["--teacher", "cnn_small+cnn_tiny", "--method", "kd+rkd"], "method.rkd: an ensemble"),
    (["--teacher", "cnn_small+"], "teacher.name: ''"),
    (["--teacher", "cnn_small+boxes:ask"], "teacher.name: 'boxes:ask' is not accepted"),
    (["--teacher", "boxes:ask", "--method", "fitnet"], "gives its stages"),
    (["--teacher", "boxes:ask", "--teacher-data", "subset"], "a black box is not trained here"),
    (["--teacher", "boxes:ask", "--teacher-checkpoint", __file__], "none: it is a black box"),
    (["--teacher", "boxes:two_inputs"], "(images, others) is not accepted"),
    (["--teacher", "boxes:no_input"], "(no input) is not accepted"),
    (["--teacher", "boxes:logits"], "perhaps it gives logits"),
    (["--teacher", "boxes:fails"], "the service is away"),
    (["--teacher", "boxes:ask", "--set", "teacher.queries=0"], "teacher.queries: 0 is not"),
    (["--teacher", "boxes:ask", "--set", "teacher.queries=9"], "expected at least"),
    (
        ["--teacher", "boxes:ask", "--sampler", "herding", "--set", "data.splits=none"],
        "reads no embedding, which a black box does not give",
    ),
    (
        ["--teacher", "cnn_tiny+cnn_tiny", "--sampler", "kcenter", "--set", "data.splits=none"],
        "reads no embedding, which an ensemble does not give",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_in_one_line_before_any_work(
    options: list[str], message: str, command: Command, tiny_options: list[str], tmp_path: Path
) -> None:
    code, _, errors = command(*tiny_options, *options, folder=tmp_path)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


TABLE_REFUSED: list[tuple[list[str], str]] = [
    (["--method", "kdplus"], "generator: 'mixup' is not accepted"),
    (["--method", "kd", "--set", "data.augment.affine=1"], "data.augment: images that are moved"),
    (["--method", "at"], "method.at: a table"),
    (["--method", "kd", "--sampler", "margin", "--set", "data.splits=none"], "a table ranks"),
    (["--method", "kd", "--teacher-data", "subset"], "a table is not trained here"),
    (["--method", "kd", "--teacher-checkpoint", "x.pth"], "one of checkpoint and table"),
    (["--method", "kd", "--sampler", "episodic", "--shots", "1"], "data.sampler: 'episodic'"),
]


@pytest.mark.parametrize(("options", "message"), TABLE_REFUSED)
def test_a_table_is_refused_for_other_images(
    options: list[str], message: str, command: Command, tmp_path: Path, table: Path
) -> None:
    size = [] if "--shots" in options else ["--fraction", "0.1"]
    given = ["--steps", "6", *size, "--set", f"teacher.table={table}", *options]
    code, _, errors = command(*given, folder=tmp_path / "runs")
    assert code == 2, errors
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("steps", ["1", "8"])
def test_a_table(
    steps: str, command: Command, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--steps", steps, "--fraction", "0.1", "--method", "kd"]
    options += ["--set", f"teacher.table={table}"]
    code, _, errors = command(*options, folder=tmp_path)
    assert code == 0, errors
    (result,) = results(tmp_path, "kd")
    assert (result.teacher or {})["name"] == "table"
    assert result.agreement is None
    assert result.teacher_queries == (64 if steps == "1" else result.n_train)
    moved = table.rename(tmp_path / "moved.npz")
    code, _, errors = command(*options[:-1], f"teacher.table={moved}", folder=tmp_path)
    assert code == 0
    assert "already finished" in errors
    np.savez(moved, probs=np.full((len(np.load(moved)["probs"]), 10), 0.1))
    code, _, errors = command(*options[:-1], f"teacher.table={moved}", folder=tmp_path)
    assert code == 0
    assert "already finished" not in errors


def test_a_table_of_a_network_teaches_like_the_network(
    tmp_path: Path, digits: DataSplits, tiny: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net = build("cnn_small", 10, 1)
    logits = predict(FeatureNet(net), digits.train, torch.device("cpu"))
    np.savez(tmp_path / "t.npz", probs=logits.double().softmax(1).numpy())
    more = {**tiny, "method": {"temperature": 1.0}}
    plain = distill(net, "cnn_tiny", "digits", method="kd", settings=more)
    settings = {**more, "teacher": {"table": str(tmp_path / "t.npz")}}
    found = distill(None, "cnn_tiny", "digits", method="kd", settings=settings)
    assert found.final_loss == pytest.approx(plain.final_loss, rel=1e-3)
    assert found.teacher_queries == plain.teacher_queries


def test_black_box_and_ensemble_from_python(tiny: dict[str, Any], seen: list[Tensor]) -> None:
    ask, data = importlib.import_module("boxes").ask, "digits"
    settings = {key: tiny[key] for key in ("data", "budget")}
    for method in ("kd", "kdplus"):
        result = distill(ask, "cnn_tiny", data, method=method, settings=settings)
        assert (result.teacher or {})["name"] == "boxes:ask"
        assert result.agreement is None
    limited = {**settings, "teacher": {"queries": 3}}
    with pytest.raises(SettingError, match=r"teacher\.queries: 3 is not accepted"):
        distill(ask, "cnn_tiny", data, method="kd", settings=limited)
    nets = [build("cnn_tiny", 10, 1), build("cnn_small", 10, 1)]
    result = distill(nets, "cnn_tiny", data, method="kd", settings=settings)
    teacher = result.teacher or {}
    assert teacher["name"] == "ConvNet+ConvNet"
    assert len(teacher["members"]) == 2
    assert "top1" in teacher
    with pytest.raises(SettingError, match="the teacher itself"):
        distill(nets, nets[1], data, method="kd", settings=settings)
    wrong: list[Any] = [[], [nets[0], "cnn_tiny"], 3]
    for one in wrong:
        with pytest.raises(SettingError, match=r"teacher: .* a torch\.nn\.Module, several"):
            distill(one, "cnn_tiny", data, method="kd", settings=settings)
    with pytest.raises(SettingError, match="a function of images alone"):
        distill(importlib.import_module("boxes").two_inputs, "cnn_tiny", data, method="kd")


def test_keys() -> None:
    """Those of plain teachers are as they were; everything that tells a teacher is in it."""

    def key(**teacher: Any) -> str:
        return identify(resolve({"method": "kd", "teacher": teacher}))[0].key()

    assert identify(resolve({}))[0].key() == "282804ee77898eaf"
    assert key(name="resnet8x4", budget={"epochs": 3}) == "63c67d2519fd1b45"
    teachers: list[dict[str, Any]] = [
        {"name": "cnn_small"},
        {"name": "cnn_small", "queries": 10**6},
        {"name": "cnn_small+cnn_small"},
        {"name": "cnn_small+cnn_tiny"},
        {"name": "cnn_small+cnn_small", "seed": 1001},
        {"name": "boxes:ask"},
        {"name": "boxes:as_lists"},
    ]
    assert len({key(**teacher) for teacher in teachers}) == len(teachers)


def test_the_source_of_a_black_box_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file, config = (
        tmp_path / "changing_box.py",
        resolve({"method": "kd", "teacher": "changing_box:ask"}),
    )
    keys = set()
    for number in (1, 22):
        file.write_text(f"def ask(images):\n    return {number}\n")
        keys.add(identify(config)[0].key())
    assert len(keys) == 2


def test_logits_that_are_not_exact_are_refused(
    tiny_kd: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KD, "needs", Needs(exact_logits=True))
    prepare(resolve(tiny_kd), tmp_path)
    for name in ("boxes:ask", "cnn_tiny+cnn_tiny"):
        config = resolve(tiny_kd, {"teacher": {"name": name}})
        with pytest.raises(SettingError, match="whose logits are known exactly"):
            prepare(config, tmp_path)


def test_each_of_several_teachers_may_be_looked_into(
    tiny_kd: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(KD, "needs", Needs(teachers=2))
    monkeypatch.setattr(KD, "passes", (each_teacher("logits", "embedding"),))
    with pytest.raises(SettingError, match="1 teacher is not accepted"):
        prepare(resolve(tiny_kd), tmp_path)
    with pytest.raises(SettingError, match="a black box as its teacher"):
        prepare(resolve(tiny_kd, {"teacher": "boxes:ask"}), tmp_path)
    config = resolve(tiny_kd, {"teacher": "cnn_small+cnn_tiny"})
    found = run(config, Session(Runtime(out=str(tmp_path), device="cpu")))
    assert found.teacher_queries > 2 * found.n_train
