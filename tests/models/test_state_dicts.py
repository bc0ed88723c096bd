"""Weights as others write them: what they are wrapped in, what stands beside, what is not taken."""

import argparse
import datetime
import os
import pathlib
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.checkpoint import load_body, load_weights, read_about, save_weights
from fskd.models.state_dicts import AVERAGED, PLAIN, WRAPPERS


def net(num_classes: int = 10, seed: int = 0, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return build(name, num_classes)


def state(seed: int = 1, **options) -> dict[str, torch.Tensor]:
    return dict(net(seed=seed, **options).state_dict())


def under(prefix: str, weights: dict) -> dict:
    return {prefix + name: value for name, value in weights.items()}


def loaded(content: object, folder: Path, name: str = "w.pth", **options) -> list[str]:
    """Notes, after checking that the network gives the logits of ``state()``."""
    torch.save(content, folder / name, **options)
    target, source = net(seed=2), net(seed=1)
    notes = load_weights(target, folder / name)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(target.eval()(images), source.eval()(images))
    return notes


def refused(content: object, folder: Path, model: nn.Module | None = None) -> str:
    """The message, after checking that it is one line and that no weight changed."""
    model = model or net(seed=2)
    torch.save(content, folder / "w.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SettingError) as caught:
        load_weights(model, folder / "w.pth")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
JOINED = ["", *PREFIXES, *(a + b for a in PREFIXES for b in PREFIXES if a != b), "module.module."]


@pytest.mark.parametrize("prefix", JOINED)
@pytest.mark.parametrize("keys", [(), ("model",), ("state_dict", "ema"), ("ema", "module")])
def test_prefix_in_wrapping(tmp_path, prefix, keys):
    content = under(prefix, state())
    for key in keys:
        content = {key: content, "epoch": 3}
    notes = loaded(content, tmp_path)
    assert notes == [f"{key} used" for key in keys if key == "ema"] + (
        [f"prefix {prefix} stripped"] if prefix else []
    )


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", [None, "state_dict", "model", "ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapping_in_any_order(tmp_path, outer, inner, prefix):
    content = under(prefix, state())
    content = {"lr": 0.1, inner: content} if inner else content
    notes = loaded({"epoch": 3, outer: content, "optimizer": {"state": {}}}, tmp_path)
    used = [f"{key} used" for key in (outer, inner) if key in AVERAGED]
    assert notes == used + ([f"prefix {prefix} stripped"] if prefix else [])


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("averaged", AVERAGED)
def test_plain_weights_before_averaged_ones(tmp_path, plain, averaged):
    content = {averaged: state(seed=3), plain: state()}
    assert loaded(content, tmp_path) == [f"{averaged} not used"]


def test_options_called_like_a_wrapper_are_none(tmp_path):
    options = {"state_dict": {"name": "resnet8"}, "model": {"depth": 8, "sub": {"a": 1}}}
    assert loaded(options | {"net": state()}, tmp_path) == []


def test_of_student_and_teacher_the_one_that_fits(tmp_path):
    teacher = state(name="resnet14")
    assert loaded({"teacher": teacher, "student": state()}, tmp_path) == ["teacher not used"]
    assert loaded({"teacher": state(), "student": teacher}, tmp_path) == ["student not used"]


def test_a_network_with_names_like_prefixes(tmp_path):
    own = nn.ModuleDict({"model": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    other = nn.ModuleDict({"model": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
    for prefix, notes in (("", []), ("model.", ["prefix model. stripped"])):
        torch.save(under(prefix, own.state_dict()), tmp_path / "w.pth")
        assert load_weights(other, tmp_path / "w.pth") == notes
        assert torch.equal(own["model"].weight, other["model"].weight)
        assert torch.equal(own["module"].weight, other["module"].weight)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pth.tar", ".tar", ".bin", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_suffixes(tmp_path, suffix, zipped):
    options = {"_use_new_zipfile_serialization": zipped}
    assert loaded({"state_dict": state()}, tmp_path, f"w{suffix}", **options) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".SafeTensors", ".bin", ".pth"])
def test_safetensors_are_told_by_their_bytes(tmp_path, suffix):
    source, target = net(seed=1), net(seed=2)
    save_weights(source, tmp_path / f"w{suffix}")
    assert load_weights(target, tmp_path / f"w{suffix}") == []
    assert torch.equal(source.fc.weight, target.fc.weight)


def test_torch_file_named_safetensors(tmp_path):
    assert loaded(state(), tmp_path, "w.safetensors") == []


@pytest.mark.parametrize("suffix", ["", ".npz", ".onnx", ".pth.gz"])
def test_other_suffixes(tmp_path, suffix):
    (tmp_path / f"w{suffix}").write_bytes(b"")
    with pytest.raises(SettingError, match=r"a \.safetensors, .* or \.bin file$"):
        load_weights(net(), tmp_path / f"w{suffix}")


def test_what_lightning_keeps_beside(tmp_path):
    beside = {"criterion.weight": torch.ones(3), "teacher.conv.weight": torch.ones(3)}
    content = {"state_dict": under("model.", state()) | beside, "hyper_parameters": {}}
    assert loaded(content, tmp_path) == [
        "prefix model. stripped",
        "2 without that prefix ignored: criterion.weight, teacher.conv.weight",
    ]
    del content["state_dict"]["model.fc.bias"]
    message = refused(content, tmp_path)
    assert "1 missing: fc.bias; 2 unexpected: criterion.weight, teacher.conv.weight" in message


def test_extra_entries_without_a_prefix_or_within_it(tmp_path):
    assert "1 unexpected: extra" in refused(state() | {"extra": torch.ones(1)}, tmp_path)
    content = under("model.", state() | {"extra": torch.ones(1)})
    assert "1 unexpected: extra" in refused(content, tmp_path)


def test_averaged_model_of_torch(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(net(seed=1))
    assert loaded(averaged.state_dict(), tmp_path) == [
        "prefix module. stripped",
        "1 without that prefix ignored: n_averaged",
    ]


def test_weights_that_are_there_twice(tmp_path):
    twice = under("module.", state()) | {"fc.bias": torch.ones(10)}
    assert "fc.bias is in it twice, as module.fc.bias and as fc.bias" in refused(twice, tmp_path)
    both = under("model.", state()) | under("net.", state(seed=3))
    message = refused(both, tmp_path)
    assert "conv1.weight is in it twice, as net.conv1.weight and as model.conv1.weight" in message
    message = refused(state() | under("module.", state(seed=3)), tmp_path)
    assert f"{len(state())} unexpected: module.conv1.weight" in message


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_profilers_leave(tmp_path, prefix):
    zero = torch.zeros(1, dtype=torch.float64)
    left = {"total_ops": zero, "total_params": zero, "conv1.total_ops": zero}
    notes = loaded(under(prefix, state() | left), tmp_path)
    assert notes[:2] == ["2 total_ops ignored", "1 total_params ignored"]
    message = refused(left, tmp_path)
    assert f"{len(state())} missing" in message


def test_counters_of_old_torch(tmp_path):
    content = {name: value for name, value in state().items() if "num_batches" not in name}
    count = len(state()) - len(content)
    assert count == 9
    expected = [f"{count} num_batches_tracked kept as they were, not in the file"]
    assert loaded(content, tmp_path) == expected
    beside = under("model.", content) | {"loss.weight": torch.ones(1)}
    assert loaded(beside, tmp_path)[2:] == expected


def test_options_of_many_kinds(tmp_path):
    beside = {
        "best": np.float64(0.9),
        "flag": np.bool_(True),
        "curve": np.arange(3.0),
        "words": np.array(["a", "b"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "rows": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        "kind": np.dtype("f4"),
        "random": np.random.RandomState(0).get_state(),
        "path": pathlib.Path("a/b"),
        "windows": pathlib.PureWindowsPath("a/b"),
        "options": argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
        "space": types.SimpleNamespace(a=1),
        "ordered": OrderedDict(a=1),
        "counts": defaultdict(list, {"a": [1]}),
        "recent": deque([1, 2]),
        "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "lasted": datetime.timedelta(1),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "torch": torch.__version__,
        "types": [int, float, str, dict, np.float32],
        "several": [range(3), slice(1), {1}, frozenset([1]), 1j, b"x", None],
    }
    for zipped in (True, False):
        content = beside | {"model": state()}
        assert loaded(content, tmp_path, _use_new_zipfile_serialization=zipped) == []


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_options_from_either_numpy(tmp_path, module):
    content = {"model": state(), "best": np.float64(0.9), "all": np.arange(3)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    written = (tmp_path / "w.pth").read_bytes()
    ours = b"c" + np._core.multiarray.scalar.__module__.encode()
    assert ours in written
    renamed = written.replace(ours, b"c" + module.encode())
    (tmp_path / "w.pth").write_bytes(renamed)
    assert load_weights(net(), tmp_path / "w.pth") == []


def test_stand_ins_are_gone_after_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    loaded({"best": np.float64(0.9), "model": state()}, tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_numpy_weights(tmp_path):
    content = {name: value.numpy() for name, value in state().items()}
    content["fc.weight"] = np.asfortranarray(content["fc.weight"])
    content["fc.bias"] = content["fc.bias"].astype(">f4")
    content["bn1.num_batches_tracked"] = np.int64(0)
    assert loaded(content, tmp_path) == [f"{len(content)} numpy arrays made tensors"]


@pytest.mark.parametrize("value", [1.5, None, "x", [1.0], {"a": 1}, np.array(["a"])])
def test_values_that_are_no_tensors(tmp_path, value):
    assert "(fc.bias is no tensor but" in refused(state() | {"fc.bias": value}, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_hold_no_plain_numbers(tmp_path):
    odd = [
        torch.ones(10).to_sparse(),
        torch.ones(10, device="meta"),
        torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8),
    ]
    for value in odd:
        message = refused(state() | {"fc.bias": value}, tmp_path)
        assert "fc.bias is a sparse, quantised or empty tensor" in message


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision(tmp_path, kind):
    content = {n: v.to(kind) if v.is_floating_point() else v for n, v in state().items()}
    torch.save(content, tmp_path / "w.pth")
    target = net(seed=2)
    count = sum(value.dtype == kind for value in content.values())
    short = str(kind).removeprefix("torch.")
    assert load_weights(target, tmp_path / "w.pth") == [
        f"{count} tensors cast from {short} to float32"
    ]
    assert target.fc.weight.dtype == torch.float32
    assert torch.equal(target.fc.weight, content["fc.weight"].float())


@pytest.mark.parametrize(
    ("name", "kind"), [("fc.bias", torch.complex64), ("bn1.num_batches_tracked", torch.float32)]
)
def test_casts_that_lose_parts(tmp_path, name, kind):
    content = state()
    content[name] = content[name].to(kind)
    assert f"1 of another type: {name} {str(kind)[6:]} instead of" in refused(content, tmp_path)


def test_values_that_are_not_finite(tmp_path):
    content = state()
    content["conv1.weight"][0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    content["fc.bias"] = content["fc.bias"].double().fill_(1e300)
    torch.save(content, tmp_path / "w.pth")
    assert load_weights(net(), tmp_path / "w.pth") == [
        "1 tensors cast from float64 to float32",
        "12 values are NaN or infinite, the first in conv1.weight",
    ]


def test_pickled_network(tmp_path):
    message = refused({"model": net()}, tmp_path)
    assert "(fskd.models.resnet_cifar.ResNet), and reading them could run code" in message
    assert "as torch.save(model.state_dict(), path) writes it" in message


def test_script_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(SettingError, match="a TorchScript archive, which is code"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")


def test_dict_within_itself(tmp_path):
    content: dict = {"epoch": 1}
    content["model"] = content
    assert refused(content, tmp_path)


def test_about(tmp_path):
    about = {"model": "resnet8", "data": "CIFAR-100 · 1 %", "classes": "10"}
    save_weights(net(seed=1), tmp_path / "deep" / "w.safetensors", about)
    assert read_about(tmp_path / "deep" / "w.safetensors") == about
    assert os.listdir(tmp_path / "deep") == ["w.safetensors"]
    assert load_weights(net(), tmp_path / "deep" / "w.safetensors") == []


def test_no_about(tmp_path):
    save_weights(net(), tmp_path / "w.safetensors")
    torch.save(state(), tmp_path / "w.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name in ("w.safetensors", "w.pth", "damaged.safetensors", "absent.safetensors", "."):
        assert read_about(tmp_path / name) == {}


def test_about_gives_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch\nfrom fskd.models.checkpoint import save_weights\n"
        "net = torch.nn.Linear(2, 2)\nfor p in net.parameters(): torch.nn.init.ones_(p)\n"
        "save_weights(net, sys.argv[1], dict.fromkeys(sys.argv[2], 'x'))\n"
    )
    for i, keys in enumerate(["abcdefgh", "hgfedcba"]):
        command = [sys.executable, "-c", code, str(tmp_path / f"{i}.safetensors"), keys]
        subprocess.run(command, check=True)
    written = [(tmp_path / f"{i}.safetensors").read_bytes() for i in range(2)]
    assert written[0] == written[1]


def body_loaded(target: nn.Module, content: object, folder: Path, head: str) -> list[str]:
    """Notes, after checking that all but the head is the file's and the head as it was."""
    torch.save(content, folder / "w.pth")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    notes = load_body(target, folder / "w.pth", "student.init")
    for name, value in target.state_dict().items():
        wanted = before[name] if name.startswith(f"{head}.") else content[name]
        assert torch.equal(value, wanted), name
    return notes


def test_body_of_other_classes(tmp_path):
    content = state(name="resnet20", num_classes=1000)
    notes = body_loaded(net(name="resnet20"), content, tmp_path, "fc")
    assert notes == ["head fc left as initialised (1000 classes in the file, 10 here)"]


def test_body_with_a_head_that_fits(tmp_path):
    notes = body_loaded(net(), state(), tmp_path, "fc")
    assert notes == ["head fc left as initialised (10 classes in the file, 10 here)"]


def test_body_with_no_head_or_one_of_another_name(tmp_path):
    content = state(num_classes=100)
    weight, bias = content.pop("fc.weight"), content.pop("fc.bias")
    notes = body_loaded(net(), content, tmp_path, "fc")
    assert notes == ["head fc left as initialised (none in the file, 10 here)"]
    content |= {"linear.weight": weight, "linear.bias": bias}
    notes = body_loaded(net(), content, tmp_path, "fc")
    assert notes == ["head fc left as initialised (linear of 100 classes in the file, 10 here)"]


def test_body_in_wrapping_with_prefix(tmp_path):
    content = {"state_dict": under("module.backbone.", state(num_classes=100)), "epoch": 1}
    torch.save(content, tmp_path / "w.pth")
    target = net()
    assert load_body(target, tmp_path / "w.pth", "student.init") == [
        "prefix module.backbone. stripped",
        "head fc left as initialised (100 classes in the file, 10 here)",
    ]
    assert torch.equal(target.conv1.weight, state(num_classes=100)["conv1.weight"])


def test_body_that_does_not_fit(tmp_path):
    whole = state(num_classes=100)
    head = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}
    headless = {name: value for name, value in whole.items() if not name.startswith("fc.")}
    two = head | {"b.weight": torch.ones(2, 2), "b.bias": torch.ones(2)}
    cases = [
        ({n: v for n, v in whole.items() if n != "conv1.weight"}, "1 missing: conv1.weight"),
        (whole | {"extra": torch.ones(1)}, "1 unexpected: extra"),
        (whole | head, "2 unexpected: a.weight, a.bias"),
        (headless | two, "4 unexpected: a.weight, a.bias, b.weight"),
        (whole | {"conv1.weight": torch.ones(1)}, "1 of another shape: conv1.weight"),
    ]
    for content, reason in cases:
        torch.save(content, tmp_path / "w.pth")
        target = net()
        with pytest.raises(SettingError, match=r"^student\.init: .*" + reason) as caught:
            load_body(target, tmp_path / "w.pth", "student.init")
        assert "\n" not in str(caught.value)
        assert torch.equal(target.conv1.weight, net().conv1.weight)


VIT = "vit_tiny_patch16_224"


def test_body_of_timm(tmp_path):
    pytest.importorskip("timm")
    for name, head in ((VIT, "head"), ("resnet18", "fc"), ("convnext_atto", "head.fc")):
        content = state(name=f"timm:{name}", num_classes=1000)
        notes = body_loaded(net(name=f"timm:{name}"), content, tmp_path, head)
        assert notes == [f"head {head} left as initialised (1000 classes in the file, 10 here)"]


def test_body_of_timm_with_two_heads(tmp_path):
    timm = pytest.importorskip("timm")
    name = "deit_tiny_distilled_patch16_224"
    content = timm.create_model(name, num_classes=1000).state_dict()
    torch.save(content, tmp_path / "w.pth")
    notes = load_body(timm.create_model(name, num_classes=10), tmp_path / "w.pth", "student.init")
    assert [note.split(" left")[0] for note in notes] == ["head head", "head head_dist"]


@pytest.mark.parametrize("name", [VIT, "vit_base_patch16_siglip_224"])
def test_positions_at_another_size(tmp_path, name):
    timm = pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed

    size = {"embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 10}
    source = timm.create_model(name, **size)
    target = timm.create_model(name, img_size=96, **size)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(SettingError, match="1 of another shape: pos_embed 1x19"):
        load_weights(target, tmp_path / "w.pth")
    notes = load_body(target, tmp_path / "w.pth", "student.init")
    assert "pos_embed resampled from 14x14 to 6x6" in notes
    prefix = 1 if name == VIT else 0
    wanted = resample_abs_pos_embed(source.pos_embed, [6, 6], num_prefix_tokens=prefix)
    assert torch.equal(target.pos_embed, wanted)
