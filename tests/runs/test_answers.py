"""What a teacher says of the test images is asked once, and never taken for another's answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fskd.config import Runtime
from fskd.data.datasets.base import load
from fskd.models.catalog import build
from fskd.models.checkpoint import save_weights
from fskd.models.taps import FeatureNet
from fskd.results.store import RunDir
from fskd.runs import answers
from fskd.runs.session import Session


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images whenever a network is asked."""
    passes: list[int] = []
    plain = answers.predict

    def counted(net: Any, images: Any, *rest: Any, **more: Any) -> torch.Tensor:
        passes.append(len(images))
        return plain(net, images, *rest, **more)

    monkeypatch.setattr(answers, "predict", counted)
    return passes


def ask(net: FeatureNet, about: dict[str, Any], folder: Path, **changes: Any) -> torch.Tensor:
    """As a process of its own would."""
    session = Session(Runtime(out=str(folder), device="cpu"))
    return answers.on_test(net, about, replace(load("digits").test, **changes), session)


def test_a_run_keeps_the_answers_of_its_network(tmp_path: Path, asked: list[int]) -> None:
    net, about = FeatureNet(build("cnn_tiny", 10, 1)), {"key": "k", "run": "teacher-k"}
    place = RunDir(tmp_path / "teacher-k")
    save_weights(net.net, place.student)
    first = ask(net, about, tmp_path)
    assert torch.equal(ask(net, about, tmp_path), first)
    assert asked == [599]
    stored = place.test_logits.read_bytes()
    for _ in range(5):  # as other processes would write it
        answers.keep(place, first, load("digits").test)
        assert place.test_logits.read_bytes() == stored
    for damaged in (b"", stored[:100], stored[:-4000]):
        place.test_logits.write_bytes(damaged)
        assert torch.equal(ask(net, about, tmp_path), first)
    assert asked == [599] * 4
    ask(net, about, tmp_path, mean=(0.0,))  # the same images, normalised in another way
    assert asked == [599] * 5
    other = FeatureNet(build("cnn_tiny", 10, 1))
    save_weights(other.net, place.student)  # the same place, other weights
    assert not torch.equal(ask(other, about, tmp_path), first)
    assert asked == [599] * 6
    place.clear()
    assert not place.test_logits.exists()


def test_answers_of_a_checkpoint_stay_in_the_process(tmp_path: Path, asked: list[int]) -> None:
    net, session = FeatureNet(build("cnn_tiny", 10, 1)), Session(Runtime(out=str(tmp_path)))
    images = load("digits").test
    for key in ("a", "a", "b", "c", "d", "e", "e"):
        answers.on_test(net, {"key": key}, images, session)
    assert len(asked) == 5
    assert len(session.test_logits) == answers.MOST_SETS
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 1000)
    answers.keep(RunDir(tmp_path), torch.zeros(599, 10), load("digits").test)
    assert not list(tmp_path.iterdir())
