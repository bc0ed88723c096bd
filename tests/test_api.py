"""``fskd.distill`` gives what the command line gives, for anybody's networks and data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import fskd
from fskd.config import Runtime
from fskd.data.datasets.base import load
from fskd.errors import FskdError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights
from fskd.resolve import resolve
from fskd.runs.hashes import weights_hash
from fskd.runs.runner import run
from fskd.runs.session import Session
from fskd.seeding import derive


def named_run(out: Path, tiny: dict[str, Any]) -> Any:
    """The same job as the command line does it."""
    return run(resolve(tiny), Session(Runtime(out=str(out))))


def seeded(name: str, *purpose: str | int) -> nn.Module:
    """A network as the command line would initialise it."""
    torch.manual_seed(derive(0, "init", *purpose))
    return build(name, 10, 1)


def test_networks_and_data_from_python_equal_the_command_line(
    out: Path, tiny: dict[str, Any]
) -> None:
    named = named_run(out, tiny)
    teacher, student = build("cnn_small", 10, 1), seeded("cnn_tiny", "student", 0)
    load_weights(teacher, out / named.teacher["run"] / "student.safetensors")
    result = fskd.distill(teacher, student, load("digits"), fraction=0.1, steps=6)
    for field in (
        "top1", "nll", "ece", "agreement", "tv_train", "tv_test", "tv_paths", "n_train",
        "split_sha256", "data_sha256", "student_rows", "teacher_queries", "final_loss",
    ):  # fmt: skip
        assert getattr(result, field) == getattr(named, field), field
    trained = build("cnn_tiny", 10, 1)
    load_weights(trained, Path(named.path) / "student.safetensors")
    for name, value in trained.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
    assert result.path == ""


def test_names_equal_the_command_line(out: Path, tiny: dict[str, Any]) -> None:
    named = named_run(out, tiny)
    result = fskd.distill(
        "cnn_small", "cnn_tiny", "digits", fraction=0.1, steps=6, out=out,
        settings={"teacher": {"budget": {"steps": 20}}},
    )  # fmt: skip
    assert result == named


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """A map-style data set of float images in [0, 1]."""

    def __init__(self, n: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self.images = torch.rand(n, 3, 12, 12, generator=rng)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i], i % 4


def small_net(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["map", "tensors", "arrays", "tensor_dataset"])
def test_any_data(kind: str) -> None:
    pairs = Pairs(80)
    images, labels = pairs.images, torch.arange(80) % 4
    data = {
        "map": pairs,
        "tensors": (images, labels),
        "arrays": ((images * 255).to(torch.uint8).numpy(), labels.numpy()),
        "tensor_dataset": TensorDataset(images, labels),
    }[kind]
    result = fskd.distill(small_net(), small_net(), data, shots=3, steps=2, method="kdplus+at")
    assert result.n_train == 12
    assert result.num_classes == 4
    assert result.config["data"]["name"] == "own"


def test_kept_files_and_no_second_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = small_net(), small_net()
    start = {k: v.clone() for k, v in student.state_dict().items()}
    again = small_net()
    again.load_state_dict(start)
    first = fskd.distill(teacher, student, Pairs(40), steps=3, out=tmp_path)
    second = fskd.distill(teacher, again, Pairs(40), steps=3, out=tmp_path)
    assert first == second
    assert json.loads((Path(first.path) / "result.json").read_text())["key"] == first.key
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in student.state_dict().items())
    assert not torch.equal(start["0.weight"], student.state_dict()["0.weight"])


def test_online_students() -> None:
    students = [small_net(), small_net()]
    result = fskd.distill(None, students, Pairs(40), method="dml", steps=2)
    assert len(result.peers_top1) == 1
    with pytest.raises(FskdError, match="2 networks"):
        fskd.distill(None, small_net(), Pairs(40), method="dml", steps=2)


def test_without_teacher() -> None:
    result = fskd.distill(None, small_net(), Pairs(40), method="ce", steps=2)
    assert result.teacher is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fraction": 2}, "data.fraction"),
        ({"fraction": 0.5, "shots": 2}, "fraction and shots"),
        ({"method": "kdd"}, "'kd' (nearest)"),
        ({"student": small_net(5)}, "4 classes"),
        ({"teacher": small_net(5)}, "4 classes"),
        ({"data": (np.zeros((4, 12, 12, 3)), np.zeros(3, int))}, "labels"),
        ({"settings": {"optim": {"lrr": 1}}}, "'lr' (nearest)"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_mistakes(change: dict[str, Any], word: str) -> None:
    arguments = {"teacher": small_net(), "student": small_net(), "data": Pairs(40), "steps": 2}
    with pytest.raises(FskdError) as caught:
        fskd.distill(**(arguments | change))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    np_before = np.random.get_state()[1].copy()  # noqa: NPY002 - it is the legacy state we watch
    fskd.distill(small_net(), small_net(), Pairs(40), steps=2)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)
    teacher, student = small_net(), small_net()
    before = torch.get_rng_state()
    fskd.distill(teacher, student, Pairs(40), steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == np_before).all()  # noqa: NPY002


class WithDropout(nn.Module):
    """Equal weights, another network."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.body, self.drop = small_net(), nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.body(x))


def test_keys_tell_networks_and_normalisation_apart(tmp_path: Path) -> None:
    keys = set()
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        student = WithDropout(rate)
        keys.add(fskd.distill(None, student, Pairs(40), method="ce", steps=1, out=tmp_path).key)
    splits = load("digits")
    for mean in ((0.1,), (0.5,)):
        changed = splits._replace(train=replace(splits.train, mean=mean))
        result = fskd.distill(
            None, "cnn_tiny", changed, method="ce", steps=1, fraction=0.1, out=tmp_path
        )
        keys.add(result.key)
    assert len(keys) == 4


def test_given_networks_keep_what_is_theirs() -> None:
    """The teacher stays as it is, and layers that were frozen stay frozen."""
    teacher, student = small_net(), small_net()
    student[0].requires_grad_(False)
    first = student[0].weight.clone()
    fskd.distill(teacher, student, Pairs(40), method="kd", steps=3)
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training
    assert torch.equal(student[0].weight, first)


def test_bfloat16_networks_can_be_hashed() -> None:
    assert weights_hash(small_net().bfloat16()) != weights_hash(small_net().bfloat16())


def test_networks_see_the_images_as_they_are() -> None:
    """What is measured is what the returned student gives on the same images."""
    pairs = Pairs(80)
    teacher, student = small_net(), small_net()
    splits = (pairs.images[:60], torch.arange(60) % 4), (pairs.images[60:], torch.arange(20) % 4)
    result = fskd.distill(teacher, student, splits[0], test_data=splits[1], steps=20)
    assert student.training
    shown = (pairs.images[60:] * 255).round() / 255
    right = (student(shown).argmax(1) == splits[1][1]).float().mean()
    assert right.item() == pytest.approx(result.top1)
    normalised = fskd.distill(
        teacher, small_net(), splits[0], test_data=splits[1], steps=1, mean=[0.5] * 3, std=[0.2] * 3
    )
    assert normalised.key != result.key


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"teacher": 5}, "teacher"),
        ({"student": None}, "student"),
        ({"student": []}, "student"),
        ({"student": nn.Linear}, "student"),
        ({"student": nn.Flatten()}, "parameters"),
        ({"mean": [0.5]}, "3 numbers"),
        ({"std": [0.0] * 3}, r"in \(0, 1\]"),
        ({"data": "digits", "test_data": Pairs(8)}, "test_data"),
    ],
)
def test_wrong_kinds_of_arguments(change: dict[str, Any], word: str) -> None:
    arguments = {"teacher": small_net(), "student": small_net(), "data": Pairs(40), "steps": 2}
    with pytest.raises(FskdError, match=word):
        fskd.distill(**(arguments | change))


def test_the_same_network_twice() -> None:
    net = small_net()
    with pytest.raises(FskdError, match="the teacher itself"):
        fskd.distill(net, net, Pairs(40), steps=2)
    with pytest.raises(FskdError, match="each of them once"):
        fskd.distill(None, [net, net], Pairs(40), method="dml", steps=2)
