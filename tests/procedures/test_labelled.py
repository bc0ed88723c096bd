"""Runs that ask a black box about images that they made: the budget, the ledger, and kills."""

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digit_box import ASKED, ask, go, killed_at, rows
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fskd import distill
from fskd.data.datasets.base import load
from fskd.errors import SettingError
from fskd.procedures.queries import spread
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs import labelled
from fskd.runs.calibrate import Planner
from fskd.runs.estimate import check_queries
from fskd.runs.prepare import prepare

METHODS: dict[str, dict[str, Any]] = {
    "bbkd": {"name": "bbkd", "rounds": 3},
    "fs_bbt": {"name": "fs_bbt", "cvae_steps": 5},
}
each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    ASKED.clear()
    monkeypatch.setattr(labelled, "ROWS", 16)  # several files of answers


def weights(result: Result) -> dict[str, Tensor]:
    return load_file(Path(result.path) / "student.safetensors")


def logged(result: Result) -> list[dict[str, Any]]:
    lines = (Path(result.path) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@each
@pytest.mark.parametrize("queries", [None, 61])
def test_the_ledger(name: str, queries: int | None, tmp_path: Path) -> None:
    result = go(tmp_path, METHODS[name], queries=queries)
    ledger = result.procedure["rounds"]
    total = queries or (210 if name == "bbkd" else 260)  # there are 190 pairs of 20 images
    assert result.teacher_queries == total == len(rows())
    assert len(rows().unique(dim=0)) > 0.9 * total
    assert sum(one["asked"] for one in ledger) == total == ledger[-1]["queries"]
    assert sum(one["updates"] for one in ledger) == 10 == result.steps
    asked = 0
    for one in ledger:
        asked += one["asked"]
        assert one["queries"] == one["images"] == asked
    assert result.student_rows == 640
    images = [one["images"] for one in ledger]
    assert [one["updates"] for one in ledger] == spread(10, images)
    steps = [line["step"] for line in logged(result)]
    assert steps == sorted(set(steps))
    assert {*accumulate(one["updates"] for one in ledger)} <= {*steps}
    assert steps[-1] == 10
    assert not (Path(result.path) / "asked").exists()


@each
def test_real_images_first(name: str, tmp_path: Path) -> None:
    """The teacher sees the subset as it is, each image once; what follows is made."""
    go(tmp_path, METHODS[name])
    known = torch.as_tensor(load("digits").train.images).flatten(1).float()
    apart = torch.cdist(rows().flatten(1).float(), known).amin(1)
    assert (apart[:20] == 0).all()
    assert len(rows()[:20].unique(dim=0)) == 20
    assert float((apart[20:] > 0).float().mean()) > 0.95


@each
def test_soft_targets_alone(name: str) -> None:
    """The objective has neither labels nor generated rows; the gradient is cross-entropy's."""
    own = resolve({"method": METHODS[name]}).method.parts[0][1]
    objective = own.objective()  # type: ignore[attr-defined]
    assert objective.weights == {"ce": 0, "kd": 1, "generated": 0, "mixed": 0}
    assert objective.temperature == 1


def test_spread() -> None:
    for total, weights in ((5, [1, 9, 90, 900, 9000]), (1000, [3, 1, 7]), (7, [2, 2])):
        found, exact = spread(total, weights), sum(weights)
        assert sum(found) == total
        assert min(found) >= 1
        for one, weight in zip(found, weights, strict=True):
            assert abs(one - 1 - (total - len(weights)) * weight / exact) <= 1


@each
def test_costs_are_foreseen(name: str, tmp_path: Path) -> None:
    """What a plan tells is what the run asks; it is the procedure's, not the loop's."""
    raw = {
        "method": METHODS[name], "data": {"shots": 2}, "budget": {"steps": 10},
        "teacher": {"queries": 70},
    }  # fmt: skip
    counts = Planner().cost(resolve(raw))
    result = go(tmp_path, METHODS[name], queries=70)
    assert counts.teacher_queries == result.teacher_queries == 70
    assert (counts.steps, counts.student_rows) == (result.steps, result.student_rows)
    check_queries(prepare(resolve(raw), tmp_path))


@each
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"queries": 20}, "teacher.queries: 20 is not accepted; expected at least 2"),
        ({"unlabelled": "rest"}, "data.unlabelled: 'rest' is not accepted; expected none"),
        ({"generator": "mixup"}, "generator: 'mixup' is not accepted; expected none"),
    ],
)
def test_refused_before_any_work(
    name: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError) as error:
        go(tmp_path, METHODS[name], **more)
    assert str(error.value).startswith(message)
    assert len(torch.cat(ASKED) if ASKED else []) <= 2  # the probe
    assert not list(tmp_path.glob("*/*"))


@each
def test_a_table_cannot_be_asked(name: str, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "table.npz", probs=np.full((1198, 10), 0.1))
    raw = {"method": METHODS[name], "teacher": {"table": str(tmp_path / "table.npz")}}
    with pytest.raises(SettingError, match=rf"^method\.{name}: a table as its teacher"):
        prepare(resolve(raw), tmp_path)


def test_budgets_make_runs_of_their_own(tmp_path: Path) -> None:
    """Since they decide what is learned; the budget of a method that only checks it does not."""
    found = [go(tmp_path, METHODS["bbkd"], queries=n) for n in (60, 61)]
    assert found[0].key != found[1].key
    assert [one.teacher_queries for one in found] == [60, 61]
    keys = {go(tmp_path, "kd", queries=n).key for n in (20, 21)}
    assert len(keys) == 1


def test_several_networks(tmp_path: Path) -> None:
    """A budget counts the rows through each of them."""
    settings = {
        "method": METHODS["bbkd"], "teacher": {"queries": 121, "budget": {"steps": 3}},
    }  # fmt: skip
    result = distill(
        "cnn_tiny+cnn_tiny", "cnn_tiny", "digits", method="bbkd", shots=2, steps=8,
        out=tmp_path, device="cpu", settings=settings, quiet=True,
    )  # fmt: skip
    assert result.teacher_queries == 120
    assert [one["queries"] for one in result.procedure["rounds"]] == [40, 66, 92, 120]
    assert result.procedure["rounds"][-1]["images"] == 60


def test_images_on_disk_are_seen_in_whole_levels() -> None:
    """What is decoded, centred and normalised is the images' own levels again."""
    train = load("digits").train
    images = torch.as_tensor(train.images)

    class Stored:
        def __len__(self) -> int:
            return len(images)

        def load(self, index: int) -> Any:
            return Image.fromarray(images[index, 0].numpy())

    some = torch.tensor([5, 3, 900])
    found = []
    for source in (train, replace(train, images=Stored())):
        job = SimpleNamespace(
            data=SimpleNamespace(train=source), subset=SimpleNamespace(train=some)
        )
        found.append(labelled.pixels(job, torch.device("cpu")))  # type: ignore[arg-type]
    assert found[1].dtype == torch.uint8
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], images[some])


def test_no_labels_are_used(tmp_path: Path) -> None:
    """With other labels of the same images, the same student."""
    train, test = load("digits")
    some = torch.arange(60)
    found = []
    for turn in (0, 1):
        data = train.images[some], (train.targets[some] + turn) % 10  # type: ignore[index]
        for name in METHODS:
            result = distill(
                ask, "cnn_tiny", data, test_data=(test.images[:9], test.targets[:9]),
                method=name, n=60, steps=6, out=tmp_path / str(turn), device="cpu", quiet=True,
                settings={
                    "method": METHODS[name], "teacher": {"queries": 99},
                    "data": {"sampler": "uniform"},
                },
            )  # fmt: skip
            found.append(weights(result))
    for one, other in ((0, 2), (1, 3)):
        assert all(torch.equal(found[one][key], found[other][key]) for key in found[one])


STOPS = [
    ("fskd.runs.labelled:_ask", 3),
    ("fskd.runs.labelled:_ask", 7),
    ("fskd.runs.procedure:train", 1),
    ("fskd.runs.labelled:save_state", 1),
    ("fskd.train.loop:lr_factor", 7),
    ("fskd.runs.runner:measure", 1),
]
LATER = [
    ("fskd.runs.procedure:train", 3),
    ("fskd.runs.labelled:save_state", 2),
    ("fskd.runs.procedure:predict", 2),
]
CASES = [(name, *stop) for name in METHODS for stop in STOPS] + [("bbkd", *stop) for stop in LATER]


@pytest.mark.parametrize(("name", "where", "call"), CASES)
def test_a_killed_run_asks_nothing_twice(
    name: str, where: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed; and it ends where an unbroken one does."""
    whole = go(tmp_path / "whole", METHODS[name])
    expected = rows()
    ASKED.clear()
    heal = killed_at(where, call, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed", METHODS[name])
    heal()
    broken = go(tmp_path / "killed", METHODS[name])
    assert torch.equal(rows(), expected)
    assert broken.procedure == whole.procedure
    assert broken.teacher_queries == whole.teacher_queries == len(expected)
    assert (broken.steps, broken.student_rows) == (whole.steps, whole.student_rows)
    assert [line["step"] for line in logged(broken)] == [line["step"] for line in logged(whole)]
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[key]), key
