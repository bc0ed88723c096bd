"""What is trained beside the student is saved, and measured where it predicts something."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fskd.config import Runtime
from fskd.data.datasets.base import load
from fskd.errors import SettingError
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Pass, Role, Term, Terms, student, teacher
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights
from fskd.models.taps import FeatureNet
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.evaluate import predict, scores
from fskd.runs.runner import run
from fskd.runs.session import Session
from fskd.types import Shapes

Command = Callable[..., tuple[int, str, str]]


class Pair(Method):
    """A student, a slow copy of it, a head of its own, and the mean of all three."""

    Settings = MethodSettings
    settings: MethodSettings

    @property
    def roles(self) -> Mapping[str, Role]:
        return {"slow": Role(weights="ema", decay=0.5)}

    @property
    def passes(self) -> list[Pass]:
        logits = frozenset({"logits"})
        slow = Pass("slow", "slow", logits)
        return [student("logits", "embedding"), teacher("logits"), slow]

    def build(self, shapes: Shapes) -> None:
        self.head = nn.Linear(shapes.student.embedding[0], shapes.num_classes)

    def terms(self, step: Step) -> Terms:
        own = self.head(step.student.embedding) - step.teacher.logits
        return {"pair": Term((own - step["slow"].logits).square().mean())}

    def measured(self, step: Step) -> Mapping[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert step.batch.n_real == 0
        both = step["slow"].logits + step.student.logits
        return {"ensemble": both + self.head(step.student.embedding), "itself": step.student.logits}


@pytest.fixture
def pair() -> Iterator[None]:
    methods.names()
    methods._parts["pair"] = Pair
    yield
    del methods._parts["pair"]


def go(out: Path, *layers: dict[str, Any]) -> Result:
    raw: dict[str, Any] = {}
    for layer in layers:
        raw = merge(raw, layer)
    return run(resolve(raw), Session(Runtime(out=str(out))))


def network(path: str, name: str) -> FeatureNet:
    net = build("cnn_tiny", 10, 1)
    load_weights(net, Path(path) / f"{name}.safetensors")
    return FeatureNet(net)


def scored(net: nn.Module) -> dict[str, Any]:
    test = load("digits").test
    found = scores(predict(net, test, torch.device("cpu")), test.targets)
    return {name: value for name, value in found.items() if value is not None}


def test_average_of_the_student(out: Path, tiny: dict[str, Any]) -> None:
    plain = go(out, tiny, {"method": "kd"})
    result = go(out, tiny, {"method": "kd", "optim": {"ema": 0.8}})
    assert plain.measured == {}
    assert result.top1 == plain.top1  # the student does not notice
    assert result.measured == {"ema": scored(network(result.path, "ema"))}
    assert result.measured["ema"].keys() == {"top1", "nll", "ece"}
    assert not (Path(plain.path) / "ema.safetensors").exists()


def test_average_is_what_it_says(out: Path, tiny: dict[str, Any]) -> None:
    """After the first update, with a decay of 1/10, batch statistics included."""
    one = {"method": "ce", "optim": {"ema": 0.75}, "budget": {"steps": 1}, "student": "cnn_tiny"}
    result = go(out, tiny, one)
    none = go(out, tiny, one, {"optim": {"ema": 1e-9}})
    now, mean, last = (
        load_file(Path(r.path) / f"{name}.safetensors")
        for r, name in ((result, "student"), (result, "ema"), (none, "ema"))
    )
    from fskd.runs.prepare import prepare

    start = prepare(resolve(merge(tiny, one)), out).students[0].net.state_dict()
    assert any("running" in name for name in now)
    for name, value in now.items():
        if value.is_floating_point():
            torch.testing.assert_close(mean[name], 0.1 * start[name] + 0.9 * value)
            torch.testing.assert_close(last[name], value)
        else:
            assert torch.equal(mean[name], value)


def test_what_methods_measure_and_train(out: Path, tiny: dict[str, Any], pair: None) -> None:
    result = go(out, tiny, {"method": "pair+kd", "optim": {"ema": 0.9}})
    assert set(result.measured) == {"slow", "ema", "ensemble", "itself"}
    assert result.measured["itself"]["top1"] == result.top1
    assert result.measured["itself"]["nll"] == pytest.approx(result.nll, rel=1e-5)
    assert result.measured["slow"] == scored(network(result.path, "slow"))
    own = load_file(Path(result.path) / "method.safetensors")
    assert set(own) == {"parts.pair.head.weight", "parts.pair.head.bias"}
    head = nn.Linear(own["parts.pair.head.weight"].shape[1], 10)
    head.load_state_dict({name.rpartition(".")[2]: value for name, value in own.items()})
    ours, slow = (network(result.path, name).eval() for name in ("student", "slow"))

    class Ensemble(nn.Module):
        def forward(self, x: Tensor) -> Any:
            found = ours(x, frozenset({"logits", "embedding"}))
            logits = slow(x).logits + found.logits + head(found.embedding)
            return found._replace(logits=logits)

    expected = scored(Ensemble())
    assert result.measured["ensemble"]["top1"] == pytest.approx(expected["top1"])
    assert result.measured["ensemble"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_peers_are_measured_once(out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": "dml", "optim": {"ema": 0.9}})
    assert set(result.measured) == {"ema"}
    assert len(result.peers_top1) == 1
    names = {path.name for path in Path(result.path).glob("*.safetensors")}
    assert names == {"student.safetensors", "peer1.safetensors", "ema.safetensors"}


def test_own_modules_are_saved(out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": "fitnet"})
    names = load_file(Path(result.path) / "method.safetensors")
    assert "parts.fitnet.regressor.conv.weight" in names


def test_two_averages_of_one_name(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Pair):
        @property
        def roles(self) -> Mapping[str, Role]:
            return {"ema": Role(weights="ema")}

    methods.names()
    monkeypatch.setitem(methods._parts, "own", Own)
    resolve(tiny, {"method": "own"})
    with pytest.raises(SettingError, match=r"optim.ema: 0.9 .* own keeps an average of its own"):
        resolve(tiny, {"method": "own", "optim": {"ema": 0.9}})
    above = {"method": "own", "optim": {"ema": 0.9}, "teacher": {"name": "cnn_small"}}
    with pytest.raises(SettingError, match=r"^teacher.optim.ema"):
        resolve(tiny, {"teacher": above})


def test_command_line(command: Command, tiny_options: list[str], tmp_path: Path) -> None:
    options = [*tiny_options, "--method", "ce", "--set", "optim.ema=0.9"]
    code, table, _ = command(*options, folder=tmp_path)
    assert code == 0
    (run_dir,) = tmp_path.glob("digits-cnn_tiny-*")
    measured = json.loads((run_dir / "result.json").read_text())["measured"]
    assert f"ema top-1 {100 * measured['ema']['top1']:.2f} %" in " ".join(table.split())
    (run_dir / "stray.safetensors").touch()
    code, _, _ = command(*options, "--force", folder=tmp_path)
    assert code == 0
    assert not (run_dir / "stray.safetensors").exists()
    assert (run_dir / "ema.safetensors").exists()


@pytest.mark.parametrize("value", ["0", "1", "-1", "many"])
def test_bad_decay(value: str, command: Command) -> None:
    code, _, said = command("--set", f"optim.ema={value}")
    assert code == 2
    assert "optim.ema" in said


def test_old_results_load() -> None:
    raw = json.loads(
        Result(
            key="k", config={}, n_train=1, num_classes=2, data_sha256="", test_sha256="",
            split_sha256="", top1=0.5, nll=1.0, ece=0.1, train_top1=1.0, steps=1, epochs=1.0,
            student_rows=1, teacher_queries=0,
        ).to_json()
    )  # fmt: skip
    del raw["measured"], raw["n_unlabelled"]
    old = Result.from_json(json.dumps(raw))
    assert old.measured == {}
    assert old.n_unlabelled == 0
