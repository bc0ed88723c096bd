"""FSKD: blocks are mended in order, errors fall, nothing is asked or run that is not counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from few import Trained
from safetensors.torch import load_file
from torch import Tensor

from fskd.models.block_ends import block_ends
from fskd.models.calls import Listener, record
from fskd.procedures.fskd import pairs_of
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.estimate import cost
from fskd.runs.prepare import prepare

GREY = (1, 8, 8)


@pytest.fixture
def mended(trained: Trained) -> Callable[..., Result]:
    """Runs on 5 images of each class."""

    def run(student: str = "resnet8", **more: Any) -> Result:
        return trained.run({"student": student, "method": {"name": "fskd", **more}})

    return run


def test_better_than_the_cut_student_without_any_update(
    mended: Callable[..., Result], trained: Trained
) -> None:
    result = mended()
    plain = trained.accuracy(trained.cut("resnet8"))
    assert result.top1 > plain + 0.1
    assert result.top1 > 0.8
    assert result.steps == 0


def test_narrower_students(narrow: Trained) -> None:
    raw = {"student": "cnn_tiny", "method": "fskd"}
    assert narrow.run(raw).top1 > narrow.accuracy(narrow.cut("cnn_tiny")) + 0.1


def test_errors_never_rise_and_are_those_of_the_networks(
    mended: Callable[..., Result], trained: Trained
) -> None:
    """The last block's, measured again with the networks as they came to be."""
    result = mended()
    errors = result.procedure["errors"]
    assert list(errors) == ["conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    assert errors["conv1"] == [0, 0]  # its input is the teacher's
    assert all(after <= before for before, after in errors.values())
    assert all(after < 0.8 * before for before, after in list(errors.values())[1:])
    student, teacher = trained.network("resnet8", result), trained.teacher
    end, goal = pairs_of(student.net, teacher.net, GREY)[-1]
    ours, theirs = (
        listened(net.net, at, trained.images) for net, at in ((student, end.out), (teacher, goal))
    )
    share = float((ours - theirs).square().mean() / theirs.square().mean())
    assert share == pytest.approx(errors["layer3.0.conv2"][1], rel=1e-3)


def listened(net: torch.nn.Module, at: int, images: Tensor) -> Tensor:
    with Listener([at]) as listener, torch.no_grad():
        net(images)
    return listener.found[at].double()


def test_rows_are_counted(mended: Callable[..., Result]) -> None:
    """Teacher and student see 50 images once a block, of which there are four."""
    result = mended()
    assert result.teacher_queries == result.student_rows == 4 * 50
    assert result.procedure["rows_asked"] == 200
    tuned = mended(kd_weight=1.0)
    assert tuned.steps == 20
    assert tuned.student_rows == 200 + 20 * 64
    assert tuned.teacher_queries == 200 + 50  # whose logits are kept


def test_the_plan_of_a_run_knows_of_no_updates(tmp_path: Path) -> None:
    """Unless labels or soft targets have a weight."""
    for weight, steps in ((0.0, 0), (1.0, 20)):
        raw = {"method": {"name": "fskd", "ce_weight": weight}, "budget": {"steps": 20}}
        planned = cost(prepare(resolve(raw), tmp_path))
        assert (planned.steps, planned.student_rows) == (steps, steps * 64)
        assert planned.teacher_queries == 0


def test_the_teacher_itself_has_nothing_to_mend(
    mended: Callable[..., Result], trained: Trained
) -> None:
    result = mended("resnet14")
    assert all(max(errors) < 1e-12 for errors in result.procedure["errors"].values())
    weights = load_file(Path(result.path) / "student.safetensors")
    for name, value in trained.teacher.net.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_goals_are_where_the_next_block_begins(trained: Trained) -> None:
    small, large = trained.cut("resnet8").net, trained.teacher.net
    ends = {end.out: end.conv for end in block_ends(large, record(large, GREY))}
    goals = [ends[pair.goal] for pair in pairs_of(small, large, GREY)]
    assert goals == ["conv1", "layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"]


def test_bias_and_ridge_matter(mended: Callable[..., Result]) -> None:
    def errors(**more: Any) -> list[float]:
        return mended(**more).procedure["errors"]["layer1.0.conv2"]

    free = errors(ridge=0.0)
    assert free[1] < errors(ridge=0.0, bias=False)[1] < free[0]
    assert free[1] < errors(ridge=1.0)[1] < free[0]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("resnet20", "resnet14"), ("cnn_tiny", "resnet14"), ("resnet8", "resnet14+resnet14")],
)
def test_other_students_are_refused_before_any_training(
    student: str, teacher: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    for method in ("fskd", "mir"):
        options = ("--method", method, "--student", student, "--teacher", teacher)
        code, _, err = command(*options, folder=tmp_path)
        assert code == 2
        assert "no part of the teacher" in err or "an ensemble as its teacher" in err
        assert err.count("\n") == 1
        assert not any(tmp_path.iterdir())
