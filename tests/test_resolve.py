"""Layers of settings, their errors and the run's key."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from fskd.errors import FskdError, SettingError
from fskd.protocol import Protocol, read_protocol
from fskd.resolve import merge, parse_override, parse_yaml, resolve, validate


def test_defaults() -> None:
    config = resolve()
    assert config.data.name == "digits"
    assert config.method.name == "kdplus"
    assert config.generator is not None
    assert config.generator.name == "mixup"
    assert config.budget.steps == 800
    assert config.teacher is not None
    assert config.teacher.name == "cnn_small"


def test_stronger_layers_win() -> None:
    config = resolve({"seed": 1, "method": "kd"}, {"seed": 2}, parse_override("optim.lr=0.5"))
    assert (config.seed, config.method.name, config.optim.lr) == (2, "kd", 0.5)
    assert config.data.split_seed == 2


def test_a_name_alone_keeps_the_rest_of_its_section() -> None:
    config = resolve({"data": "fashion_mnist"}, {"data": {"fraction": 0.5}}, {"teacher": "vgg8"})
    assert (config.data.name, config.data.fraction) == ("fashion_mnist", 0.5)
    assert config.teacher is not None
    assert (config.teacher.name, config.teacher.budget.epochs) == ("vgg8", 6)


def test_dataset_defaults_lie_between() -> None:
    assert resolve({"data": {"name": "cifar100"}}).student == "resnet20"
    assert resolve({"data": {"name": "cifar100"}, "student": "vgg8"}).student == "vgg8"


@pytest.mark.parametrize(
    ("weak", "strong", "expected"),
    [
        ({"fraction": 0.5}, {"shots": 3}, {"shots": 3}),
        (
            {"method": "kd"},
            {"method": {"ce_weight": 0}},
            {"method": {"name": "kd", "ce_weight": 0}},
        ),
        ({"method": {"weight": 2}}, {"method": "at"}, {"method": {"name": "at", "weight": 2}}),
        ({"teacher": {"seed": 2}}, {"teacher": "vgg8"}, {"teacher": {"name": "vgg8", "seed": 2}}),
        ({"steps": 5}, {"epochs": 2}, {"epochs": 2}),
        (
            {"method": {"name": "kd", "temperature": 2}},
            {"method": "at"},
            {"method": {"name": "at"}},
        ),
        (
            {"method": {"name": "kd", "temperature": 2}},
            {"method": {"ce_weight": 0}},
            {"method": {"name": "kd", "temperature": 2, "ce_weight": 0}},
        ),
    ],
)
def test_merge(weak: dict[str, Any], strong: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge(weak, strong) == expected


def test_composition_has_settings_of_its_parts() -> None:
    config = resolve({"method": {"name": "kdplus+at", "at": {"weight": 7}}})
    settings = dict(config.method.parts)
    assert settings["at"].model_dump()["weight"] == 7
    assert settings["kdplus"].model_dump()["temperature"] == 4
    # What is written beside a result resolves to the same run.
    again = resolve(config.model_dump(mode="json"))
    assert again.key() == config.key()


@pytest.mark.parametrize("method", ["ce", "kd", "kdplus", "dml", "kd+rkd"])
def test_written_settings_give_the_same_key(method: str) -> None:
    config = resolve({"method": method, "data": {"shots": 3}})
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert resolve(yaml.safe_load(text)).key() == config.key()


def test_key_ignores_places_and_order_of_keys() -> None:
    raw = {"seed": 3, "data": {"name": "digits", "fraction": 0.5}, "method": "kd"}
    items = list(raw.items())
    random.Random(0).shuffle(items)
    assert resolve(dict(items)).key() == resolve(raw).key()
    moved = merge(raw, {"data": {"root": "/elsewhere", "download": True}})
    assert resolve(moved).key() == resolve(raw).key()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"data": {"fraction": 0.6}},
        {"method": {"temperature": 5}},
        {"optim": {"lr": 0.1}},
        {"teacher": {"budget": {"epochs": 3}}},
        {"generator": "none"},
        {"data": {"augment": {"flip": True}}},
    ],
)
def test_key_changes_with_whatever_determines_the_result(change: dict[str, Any]) -> None:
    raw = {"seed": 3, "data": {"fraction": 0.5}}
    assert resolve(raw, change).key() != resolve(raw).key()


def test_key_of_a_run_without_teacher_ignores_the_teacher() -> None:
    assert resolve({"method": "ce"}).key() == resolve({"method": "ce", "teacher": "vgg8"}).key()


def test_key_with_checkpoint_is_its_hash(tmp_path: Path) -> None:
    def key(path: str, sha: str, lr: float) -> str:
        raw = {"teacher": {"checkpoint": path, "optim": {"lr": lr}}}
        return resolve(raw).model_copy(update={"inputs_sha256": {"teacher": sha}}).key()

    assert key("a.pth", "1", 0.1) == key("b.pth", "1", 0.2)
    assert key("a.pth", "1", 0.1) != key("a.pth", "2", 0.1)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"data": {"fraction": 1.5}}, ["data.fraction", "1.5", "less than or equal to 1"]),
        ({"data": {"fraction": 0}}, ["data.fraction", "greater than 0"]),
        ({"data": {"fraction": 0.5, "shots": 3}}, ["fraction and shots"]),
        ({"data": {"fracton": 0.5}}, ["data.fracton", "'fraction' (nearest)"]),
        ({"budget": {"steps": 0}}, ["budget.steps", "0", "greater than or equal to 1"]),
        ({"budget": {"epochs": -1}}, ["budget.epochs", "-1"]),
        ({"method": "kdpluss"}, ["method", "'kdpluss'", "'kdplus' (nearest)", "sskd"]),
        ({"method": {"name": "kd", "temprature": 1}}, ["method.temprature", "'temperature'"]),
        ({"method": {"name": "kd", "temperature": -1}}, ["method.temperature", "-1", "than 0"]),
        ({"method": {"name": "kd+at", "weight": 1}}, ["method.weight", "method.kd.weight"]),
        ({"method": "kd+kd"}, ["method.name", "once"]),
        ({"method": 3}, ["method", "3"]),
        ({"generator": "mixupp"}, ["generator", "'mixup' (nearest)"]),
        ({"generator": {"name": "mixup", "share": 0}}, ["generator.share", "greater than 0"]),
        ({"method": "ce", "generator": "mixup"}, ["generator", "ce uses no generated points"]),
        ({"data": {"name": "digit"}}, ["dataset", "'digits' (nearest)"]),
        ({"data": {"sampler": "stratifid"}}, ["sampler", "'stratified' (nearest)"]),
        ({"data": "nope"}, ["dataset", "nope"]),
        ({"optim": {"schedule": "step"}}, ["optim.schedule", "'step'", "onecycle"]),
        ({"optim": {"lr": "fast"}}, ["optim.lr", "'fast'", "number"]),
        ({"optim": {"lr": float("nan")}}, ["optim.lr", "finite"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"teacher": {"data": "half"}}, ["teacher.data", "'half'", "'full' or 'subset'"]),
        ({"teacher": {"method": "kd"}}, ["teacher.teacher", "kd needs one"]),
        ({"method": "ce", "teacher": {"nme": 1}}, ["teacher.nme", "'name' (nearest)"]),
        ({"method": "kd", "teacher": None}, ["teacher", "kd needs one"]),
        ({"peers": 5}, ["peers", "5"]),
        ({"methd": "kd"}, ["methd", "'method' (nearest)"]),
        ({"peers": ["vgg8"]}, ["peers", "trains 1 student"]),
    ],
)
def test_mistakes_are_one_clear_line(raw: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(FskdError) as caught:
        resolve(raw)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["optim.lr", "=3", "a..b=1", ".a=1"])
def test_overrides_need_a_name_and_a_value(text: str) -> None:
    with pytest.raises(SettingError, match="--set"):
        parse_override(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!set {x}",
        "a: &x [1]\nb: *x",
        "a: {b: 1, b: 2}",
        "a: [1",
        "x" * 2_000_000,
    ],
)
def test_yaml_runs_nothing_and_is_bounded(text: str) -> None:
    with pytest.raises(FskdError) as caught:
        parse_yaml(text, "file.yaml")
    assert "\n" not in str(caught.value)


def test_protocol_expands_axes() -> None:
    protocol = Protocol(
        name="p",
        base={"budget": {"steps": 5}},
        axes={"method": ["ce", "kd"], "data.fraction": [0.1, 0.5], "seed": [0, 1, 2]},
    )
    configs = protocol.expand()
    assert len(configs) == 12
    assert len({config.key() for config in configs}) == 12
    assert {c.seed for c in protocol.expand({"seed": 7})} == {7}
    assert all(config.budget.steps == 5 for config in configs)


def test_protocol_with_an_empty_axis_is_refused() -> None:
    with pytest.raises(FskdError, match=r"axes\.seed"):
        validate(Protocol, {"name": "p", "axes": {"seed": []}})


def test_chain_makes_each_student_the_next_teacher() -> None:
    protocol = Protocol(
        name="chain",
        base={"method": "kd", "data": {"fraction": 0.5}, "seed": 3},
        chain=("cnn_small", "cnn_medium", "cnn_tiny"),
    )
    (config,) = protocol.expand()
    assistant = config.teacher_run()
    teacher = assistant.teacher_run()
    assert [c.student for c in (config, assistant, teacher)] == [
        "cnn_tiny", "cnn_medium", "cnn_small",
    ]  # fmt: skip
    assert [c.method.name for c in (config, assistant, teacher)] == ["kd", "kd", "ce"]
    # The assistant learns from the student's data, the teacher from all.
    assert [c.data.fraction for c in (config, assistant, teacher)] == [0.5, 0.5, None]
    assert len({config.seed, assistant.seed, teacher.seed}) == 3


def test_chain_names_all_networks() -> None:
    protocol = Protocol(name="chain", base={"method": "kd"}, chain=("cnn_small", "cnn_tiny"))
    for change in ({"student": "vgg8"}, {"teacher": {"name": "vgg8"}}):
        with pytest.raises(FskdError, match="chain names all"):
            protocol.expand(change)


def test_teacher_run_does_not_depend_on_the_student() -> None:
    def teacher_key(*layers: dict[str, Any]) -> str:
        return resolve(*layers).teacher_run().key()

    base = teacher_key({"data": {"fraction": 0.1}})
    assert teacher_key({"data": {"shots": 5}, "seed": 4, "method": "kd"}) == base
    assert teacher_key({"teacher": {"data": "subset"}, "data": {"fraction": 0.1}}) != base


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "unknown.yaml").write_text("name: x\nbases: {}\naxes: {}\n")
    for name in ("absent.yaml", "list.yaml", "binary.yaml", "unknown.yaml"):
        with pytest.raises(FskdError) as caught:
            read_protocol(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
