"""Kinds of teachers: what they answer, what they count, and what they refuse."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.data.augment import normalise
from fskd.errors import SettingError, TrainingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Teacher, restrict
from fskd.teachers.black_box import BlackBox, find_function, function_hash, function_name
from fskd.teachers.ensemble import Ensemble, mean_logits
from fskd.teachers.table import read_table
from fskd.types import Batch, DataSplits

CPU = torch.device("cpu")
LOGITS = frozenset({"logits"})


def nets(n: int = 2) -> list[FeatureNet]:
    return [FeatureNet(build("cnn_tiny", 10, 1)).eval() for _ in range(n)]


def batch(inputs: Tensor, n_real: int | None = None) -> Batch:
    n = len(inputs) if n_real is None else n_real
    return Batch(inputs, torch.zeros(n, dtype=torch.int64), torch.arange(n))


def test_an_ensemble_answers_with_the_mean_distribution() -> None:
    source, x = Ensemble(nets(3)), torch.randn(5, 1, 8, 8)
    expected = torch.stack([net(x).logits.softmax(1) for net in source.members]).mean(0)
    found = source(x, LOGITS).logits
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.softmax(1), expected)


def test_the_mean_is_finite_where_a_member_is_certain() -> None:
    sure = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    torch.testing.assert_close(mean_logits([sure, -sure]).exp(), torch.full((2, 2), 0.5))
    assert mean_logits([sure, sure]).isfinite().all()


def test_members_are_asked_one_by_one_and_all_of_them_count() -> None:
    source = Ensemble(nets())
    teacher, x = Teacher(source, CPU), torch.randn(3, 1, 8, 8)
    first, second = teacher.each(batch(x), frozenset({"embedding"}))
    torch.testing.assert_close(first.embedding, source.members[0](x, {"embedding"}).embedding)
    assert not torch.equal(first.embedding, second.embedding)
    assert teacher.queries == 6
    teacher.answer(batch(x), LOGITS)
    assert teacher.queries == 12
    with pytest.raises(SettingError, match="an ensemble is not accepted; expected one network"):
        source(x, frozenset({"stages"}))


def test_an_ensemble_of_some_classes_is_that_of_the_restricted_members() -> None:
    source, x, classes = Ensemble(nets()), torch.randn(4, 1, 8, 8), torch.tensor([7, 2])
    shares = [F.softmax(net(x).logits[:, classes], 1) for net in source.members]
    found = restrict(source, classes)(x, LOGITS).logits
    torch.testing.assert_close(found.exp(), torch.stack(shares).mean(0))


@pytest.mark.parametrize("name", ["ask", "as_lists", "as_array"])
def test_a_black_box_sees_plain_images_and_its_logits_are_log_p(
    name: str, digits: DataSplits, seen: list[Tensor]
) -> None:
    images = digits.train.images
    assert isinstance(images, Tensor)
    function = getattr(importlib.import_module("boxes"), name)
    source = BlackBox(function, digits.train, name)
    out = source(normalise(images[:6], digits.train), LOGITS).logits
    torch.testing.assert_close(seen[-1], images[:6] / 255, atol=1e-6, rtol=0)
    assert seen[-1].dtype == torch.float32
    assert seen[-1].min() >= 0
    assert seen[-1].max() <= 1
    torch.testing.assert_close(out.exp(), torch.softmax(seen[-1].flatten(1)[:, 10:20] * 3, 1))
    some = restrict(source, torch.tensor([3, 1]))
    assert torch.equal(some(normalise(images[:6], digits.train), LOGITS).logits, out[:, [3, 1]])


def test_generated_rows_beyond_the_images_are_clamped(
    digits: DataSplits, seen: list[Tensor]
) -> None:
    source = BlackBox(importlib.import_module("boxes").ask, digits.train, "ask")
    source(torch.full((2, 1, 8, 8), 50.0))
    assert seen[-1].max() == 1
    assert source(torch.empty(0, 1, 8, 8)).logits.shape == (0, 10)


def test_impossible_classes_have_finite_logits(digits: DataSplits) -> None:
    def sure(images: Tensor) -> Tensor:
        return F.one_hot(torch.zeros(len(images), dtype=torch.int64), 10)

    out = BlackBox(sure, digits.train, "sure")(torch.zeros(2, 1, 8, 8)).logits
    assert out.isfinite().all()
    assert out[0, 0] == 0
    assert out[0, 1] < -27


BAD = [
    ("logits", "sums to .*perhaps it gives logits"),
    ("negative", r"a probability of -.*perhaps it gives logits"),
    ("infinite", "not finite"),
    ("too_few", "2x9 instead of 2x10"),
    ("nothing", "NoneType instead of a table of numbers"),
    ("fails", "failed: the service is away"),
]


@pytest.mark.parametrize(("name", "message"), BAD)
def test_every_answer_is_checked(name: str, message: str, digits: DataSplits) -> None:
    source = BlackBox(getattr(importlib.import_module("boxes"), name), digits.train, name)
    with pytest.raises(TrainingError, match=message):
        source(torch.zeros(2, 1, 8, 8))
    with pytest.raises(SettingError, match=message):
        source.probe()


def test_a_function_is_probed_once(digits: DataSplits, seen: list[Tensor]) -> None:
    def ask(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.full((len(images), 10), 0.1)

    for _ in range(2):
        BlackBox(ask, digits.train, "ask").probe()
    assert [len(images) for images in seen] == [2]


def test_functions_are_told_apart_by_their_signature() -> None:
    assert find_function("boxes:ask") is importlib.import_module("boxes").ask
    for name in ("cnn_tiny", "boxes:builds", "boxes:builds_anyhow", "boxes:absent", "no:thing"):
        assert find_function(name) is None
    for name in ("boxes:two_inputs", "boxes:no_input"):
        with pytest.raises(SettingError, match=f"teacher.name: '{name}'.*num_classes.*images"):
            find_function(name)


class Service:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 10), 0.1)

    def method(self, images: Tensor) -> Tensor:
        return self(images)


def test_names_and_hashes_of_anything_that_can_be_called() -> None:
    from functools import partial

    service, ask = Service(1), importlib.import_module("boxes").ask
    assert function_name(ask) == function_name(partial(ask)) == "boxes:ask"
    assert function_name(service).endswith(":Service")
    assert function_name(service.method).endswith(":Service.method")
    several = {function_hash(f) for f in (ask, service, service.method)}
    assert len(several) == 3
    with pytest.raises(SettingError, match="whose source can be read"):
        function_hash(len)


def test_a_table_answers_for_rows_of_its_subset(table: Path, digits: DataSplits) -> None:
    source, some = read_table(table, len(digits.train), 10), torch.tensor([5, 3, 100])
    source.choose(some)
    teacher = Teacher(source, CPU)
    asked = Batch(torch.zeros(2, 1, 8, 8), digits.train.targets[some[[2, 0]]], torch.tensor([2, 0]))
    found = teacher.answer(asked, LOGITS).logits
    assert torch.equal(found.argmax(1), asked.targets)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2))
    assert teacher.queries == 2
    assert torch.equal(teacher.each(asked, LOGITS)[0].logits, found)
    with pytest.raises(SettingError, match="no training image"):
        teacher.answer(batch(torch.zeros(3, 1, 8, 8), 2), LOGITS)
    with pytest.raises(SettingError, match=r"teacher\.table: 3 images"):
        teacher.ask(torch.zeros(3, 1, 8, 8))
    with pytest.raises(SettingError, match="episodic"):
        restrict(source, some)


TABLES: list[tuple[dict[str, Any], str]] = [
    ({"other": np.ones((3, 2)) / 2}, "no probs"),
    ({"probs": np.ones((4, 2)) / 2}, "4x2 instead of 3x2"),
    ({"probs": np.ones((3, 2), np.int64)}, "probs of int64"),
    ({"probs": np.ones((3, 2))}, "sums to 2"),
    ({"probs": np.full((3, 2), np.nan)}, "not finite"),
    ({"probs": np.array([[None, 1]] * 3)}, "damaged"),
]


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_a_wrong_table_is_one_line(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, **content)
    with pytest.raises(SettingError, match=message):
        read_table(path, 3, 2)


def test_no_table_and_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with pytest.raises(SettingError, match="no such file"):
        read_table(path, 3, 2)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(SettingError, match="damaged"):
        read_table(path, 3, 2)
    np.save(tmp_path / "t.npy", np.ones((3, 2)))
    with pytest.raises(SettingError, match=r"teacher\.table.*damaged, or no \.npz"):
        read_table(tmp_path / "t.npy", 3, 2)


def test_a_budget_is_kept_before_the_teacher_is_asked(
    digits: DataSplits, seen: list[Tensor]
) -> None:
    source = BlackBox(importlib.import_module("boxes").ask, digits.train, "ask")
    teacher = Teacher(source, CPU, budget=5)
    teacher.answer(batch(torch.zeros(5, 1, 8, 8)), LOGITS)
    with pytest.raises(TrainingError, match=r"6 rows, more than teacher\.queries \(5\)"):
        teacher.ask(torch.zeros(1, 1, 8, 8))
    assert sum(map(len, seen)) == 5


def test_known_answers_are_not_asked_for(digits: DataSplits, seen: list[Tensor]) -> None:
    source, kept = BlackBox(importlib.import_module("boxes").ask, digits.train, "ask"), []
    x = torch.randn(4, 1, 8, 8)
    for known in (None, 0):
        teacher = Teacher(source, CPU)
        teacher.remember(iter([x]), 4, 4, None if known is None else kept[0], kept.append)
        found = teacher.answer(batch(x), LOGITS).logits
        assert torch.equal(found, kept[0])
        assert teacher.queries == 4
    assert len(kept) == 1
    assert len(seen) == 1
