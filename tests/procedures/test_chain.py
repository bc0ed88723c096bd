"""Chains: every missing link once, from the first on; assistants and generations by a method."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fskd.config import RunConfig, Runtime
from fskd.errors import FskdError, SettingError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights
from fskd.procedures.takd import medium
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs import runner
from fskd.runs.images import load_data
from fskd.runs.prepare import NOTHING_GIVEN
from fskd.runs.session import Session

SHORT: dict[str, Any] = {
    "data": {"fraction": 0.05},
    "budget": {"steps": 3},
    "teacher": {"budget": {"steps": 3}},
}


def chained() -> RunConfig:
    """cnn_tiny from cnn_medium from cnn_small."""
    first = {"name": "cnn_small", "method": "ce", "budget": {"steps": 2}}
    assistant = {"name": "cnn_medium", "method": "kd", "budget": {"steps": 2}, "teacher": first}
    return resolve({"student": "cnn_tiny", "method": "kd", "teacher": assistant})


@pytest.mark.parametrize(
    ("made", "missing"),
    [
        ((), ["cnn_small", "cnn_medium"]),
        (("cnn_small",), ["cnn_medium"]),
        (("cnn_medium",), []),  # nothing before a finished link is needed any more
    ],
)
def test_missing_links_in_order(
    made: tuple[str, ...], missing: list[str], monkeypatch: Any, tmp_path: Path
) -> None:
    order, done = list[str](), set(made)

    def note(config: RunConfig, *_: Any, **__: Any) -> None:
        order.append(config.student)
        done.add(config.student)

    monkeypatch.setattr(runner, "run", note)
    monkeypatch.setattr(runner, "finished", lambda config, *_: config.student in done or None)
    session = Session(Runtime(out=str(tmp_path), device="cpu"))
    runner.make_links(chained(), session, NOTHING_GIVEN)
    assert order == missing


def go(out: Path, **raw: Any) -> Result:
    return runner.run(resolve(merge(SHORT, raw)), Session(Runtime(out=str(out), device="cpu")))


def students(config: RunConfig) -> list[tuple[str, str, int]]:
    """Network, method and seed of every link from the student back to the teacher."""
    found = [(config.student, config.method.name, config.seed)]
    return found if config.teacher is None else [*found, *students(config.teacher_run())]


def test_takd_is_a_chain_with_an_assistant() -> None:
    """Assistants see the student's examples, learn as it does, and have seeds of their own."""
    config = resolve(merge(SHORT, {"method": {"name": "takd", "temperature": 2.0}, "seed": 5}))
    assert students(config) == [
        ("cnn_tiny", "takd", 5),
        ("cnn_medium", "kd", 2005),
        ("cnn_small", "ce", 1000),
    ]
    assistant = config.teacher_run()
    assert assistant.method.parts[0][1].model_dump() == {
        "ce_weight": 0.1, "kd_weight": 0.9, "temperature": 2.0,
    }  # fmt: skip
    assert (assistant.budget, assistant.optim) == (config.budget, config.optim)
    assert assistant.data.fraction == config.data.fraction
    assert assistant.data.split_seed == config.data.split_seed


def test_assistants_by_name() -> None:
    raw = {"method": {"name": "takd", "assistants": "resnet44, resnet32"}}
    config = resolve({**raw, "teacher": {"name": "resnet56"}, "student": "resnet20"})
    assert [name for name, *_ in students(config)] == [
        "resnet20", "resnet32", "resnet44", "resnet56",
    ]  # fmt: skip


def test_settings_of_a_run_are_a_chain_already() -> None:
    """What a run recorded, given again, is the same run."""
    config = resolve({"method": "takd"})
    raw = config.model_dump(mode="json")
    raw["data"] = {"name": "digits"}
    raw.pop("inputs_sha256")
    assert students(resolve(raw)) == students(config)


@pytest.mark.parametrize(
    ("teacher", "student", "found"),
    [
        ("resnet56", "resnet20", "resnet32"),
        ("resnet110", "resnet8", "resnet32"),
        ("wrn_40_2", "wrn_16_1", None),
        ("vgg13", "vgg8", "vgg11"),
    ],
)
def test_medium(teacher: str, student: str, found: str | None) -> None:
    """Between both in size, and nearer to the middle than the neighbours."""

    def size(name: str) -> int:
        return sum(p.numel() for p in build(name, num_classes=10).parameters())

    named = medium(teacher, student)
    assert found in (None, named)
    assert size(student) < size(named) < size(teacher)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("resnet20", "cnn_tiny"), ("resnet20", "resnet20"), ("resnet8", "resnet20"), ("vgg8", "m:f")],
)
def test_nothing_between(teacher: str, student: str) -> None:
    with pytest.raises(SettingError, match=r"^method\.assistants: 'auto' between"):
        resolve({"method": "takd", "teacher": {"name": teacher}, "student": student})


def test_generations() -> None:
    config = resolve(merge(SHORT, {"method": {"name": "ban", "generations": 3}}))
    assert students(config) == [
        ("cnn_tiny", "ban", 0),
        ("cnn_tiny", "kd", 3000),
        ("cnn_tiny", "kd", 2000),
        ("cnn_small", "ce", 1000),
    ]
    hop = config.teacher_run().method.parts[0][1].model_dump()
    assert hop == {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 1.0}
    one = resolve(merge(SHORT, {"method": {"name": "ban", "generations": 1}}))
    assert students(one) == [("cnn_tiny", "ban", 0), ("cnn_small", "ce", 1000)]


def test_the_ensemble_of_all_generations(tmp_path: Path) -> None:
    """The mean of the softmaxes of all generations, from their weights, without the teacher."""
    raw = {"method": {"name": "ban", "generations": 3}}
    result = go(tmp_path, **raw)
    test = load_data(resolve(merge(SHORT, raw))).test
    images = torch.as_tensor(test.images).float() / 255
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (test.mean, test.std))
    means = []
    for folder in tmp_path.glob("digits-cnn_tiny-*"):
        net = build("cnn_tiny", num_classes=10, in_channels=1).eval()
        load_weights(net, folder / "student.safetensors", "student")
        with torch.no_grad():
            means.append(net((images - mean) / std).softmax(1))
    assert len(means) == 3
    right = (torch.stack(means).mean(0).argmax(1) == test.targets).float().mean()
    assert result.measured["ensemble"]["top1"] == pytest.approx(float(right), abs=1e-6)
    assert result.measured["ensemble"]["top1"] != result.top1


def test_no_ensemble_of_one(tmp_path: Path) -> None:
    assert go(tmp_path, method={"name": "ban", "generations": 1}).measured == {}


def test_generations_start_apart(tmp_path: Path) -> None:
    """Born again: no generation starts from another's weights."""
    go(tmp_path, method="ban", budget={"steps": 1}, optim={"lr": 1e-9})
    first, second = tmp_path.glob("digits-cnn_tiny-*/student.safetensors")
    one, other = load_file(first), load_file(second)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["kdplus+takd", "ban+at"])
def test_procedures_stand_alone(name: str) -> None:
    with pytest.raises(FskdError, match=r"^method\.name: '.+' is not accepted; expected \w+ alone"):
        resolve({"method": name})


def test_no_procedures_on_episodes(tmp_path: Path) -> None:
    """An episode is one training; a chain would be left out without a word."""
    raw = {"sampler": {"name": "episodic", "episodes": 1}, "shots": 2, "fraction": None}
    with pytest.raises(SettingError, match=r"^method: 'ban' .* one loop with episodic"):
        go(tmp_path, method="ban", data=raw)
