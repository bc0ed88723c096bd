"""Weights on disk: round trips, published layouts, and files that must be refused."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_weights, save_weights


def net(num_classes: int = 10, seed: int = 0, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return build(name, num_classes)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def refusal(model: nn.Module, path: Path) -> str:
    """The message, after checking that it is one line and that no weight changed."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SettingError) as caught:
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f"teacher.checkpoint: '{path}'")
    assert "\n" not in message
    return message


class Attack:
    """A pickle that creates a file when it is read by an unguarded reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_round_trip(tmp_path):
    source, target = net(seed=1), net(seed=2)
    save_weights(source, tmp_path / "deep" / "student.safetensors")
    load_weights(target, tmp_path / "deep" / "student.safetensors")
    assert same(source, target)
    assert os.listdir(tmp_path / "deep") == ["student.safetensors"]


def test_saving_replaces_and_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    source, target = net(seed=1), net(seed=2)
    save_weights(net(seed=3), path)
    save_weights(source, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(target, path)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    load_weights(target, path)
    assert same(source, target)


def test_tied_and_channels_last_weights_are_saved(tmp_path):
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    tied[1].weight = tied[0].weight
    tied.to(memory_format=torch.channels_last)
    save_weights(tied, tmp_path / "w.safetensors")
    load_weights(tied, tmp_path / "w.safetensors")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "net"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_public_layouts(tmp_path, prefix, wrapper, suffix):
    source, target = net(seed=1), net(seed=2)
    content = {prefix + key: value for key, value in source.state_dict().items()}
    if wrapper is not None:
        content = {"epoch": 240, wrapper: content, "best_acc": torch.tensor(74.0)}
    torch.save(content, tmp_path / f"w{suffix}")
    load_weights(target, tmp_path / f"w{suffix}")
    assert same(source, target)


@pytest.mark.parametrize("zipped", [True, False])
def test_options_beside_the_weights(tmp_path, zipped):
    source, target = net(seed=1), net(seed=2)
    content = {"opt": argparse.Namespace(lr=0.05), "model": source.state_dict()}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, zipped):
    content = {"model": net().state_dict(), "extra": Attack(tmp_path / "attacked")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert "could run code" in refusal(net(), tmp_path / "w.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Attack(tmp_path / "attacked")))
    assert refusal(net(), tmp_path / "plain.pt")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 1000, -100])
def test_truncated_files(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(net().state_dict(), path)
    else:
        save_weights(net(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged, or not a checkpoint" in refusal(net(), path)


def test_missing_file_folder_and_suffix(tmp_path):
    assert "no such file" in refusal(net(), tmp_path / "absent.pth")
    assert "no such file" in refusal(net(), tmp_path)
    (tmp_path / "w.npz").write_bytes(b"")
    assert ".ckpt, .pth.tar, .tar or .bin" in refusal(net(), tmp_path / "w.npz")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"model": {"a": 1}}, 5])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert "no state dict" in refusal(net(), tmp_path / "w.pth")


def test_another_number_of_classes(tmp_path):
    for name in ("resnet8", "mobilenetv2", "timm:resnet18"):
        if ":" in name:
            pytest.importorskip("timm")
        save_weights(net(10, name=name), tmp_path / "w.safetensors")
        message = refusal(net(100, name=name), tmp_path / "w.safetensors")
        assert "has 10 classes, the data set has 100" in message


def test_another_network(tmp_path):
    save_weights(net(), tmp_path / "w.safetensors")
    deeper = refusal(net(name="resnet14"), tmp_path / "w.safetensors")
    assert "36 missing: layer1.1.conv1.weight" in deeper
    assert deeper.count("layer") == 3
    assert "..." in deeper
    other = refusal(net(name="vgg8"), tmp_path / "w.safetensors")
    assert "missing" in other
    assert "unexpected" in other
    grey = refusal(build("resnet8", 10, in_channels=1), tmp_path / "w.safetensors")
    assert "1 of another shape: conv1.weight 16x3x3x3 instead of 16x1x3x3" in grey


def test_setting_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"^student\.init: "):
        load_weights(net(), tmp_path / "absent.pth", setting="student.init")
