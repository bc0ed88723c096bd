"""LeNet-5 and its half: published sizes, taps, image sizes."""

import pytest
import torch
from torch.nn import functional as F

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.resolve import resolve
from fskd.runs.prepare import prepare
from fskd.types import TAPS


def layers(widths: tuple[int, ...], k: int, channels: int) -> int:
    """Weights and biases, layer by layer."""
    a, b, c, d = widths
    convolutions = [(channels, a), (a, b), (b, c)]
    linears = [(c, d), (d, k)]
    return sum((25 * i + 1) * o for i, o in convolutions) + sum((i + 1) * o for i, o in linears)


@pytest.mark.parametrize(
    ("name", "widths", "count"),
    [("lenet5", (6, 16, 120, 84), 61_706), ("lenet5_half", (3, 8, 60, 42), 15_738)],
)
def test_parameter_count(name, widths, count):
    found = sum(p.numel() for p in build(name, 10, 1).parameters())
    assert found == count == layers(widths, 10, 1)
    assert sum(p.numel() for p in build(name, 7, 3).parameters()) == layers(widths, 7, 3)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_half"])
@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32)])
def test_taps(name, size):
    net = build(name, 7, size[0])
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    out = net.taps(x)
    assert torch.equal(net(x), out.logits)
    assert torch.equal(net.fc2(out.embedding), out.logits)
    assert out.stem.shape[2:] == (28, 28)
    assert [tuple(s.shape[2:]) for s in out.stages] == [(10, 10), (1, 1)]
    assert all(torch.equal(p.relu(), s) for p, s in zip(out.pre, out.stages, strict=True))
    shapes = FeatureNet(net).tap_shapes(size, frozenset(TAPS))
    assert shapes.embedding == tuple(out.embedding.shape[1:])
    assert shapes.stem == tuple(out.stem.shape[1:])
    assert shapes.norms == (None, None)
    assert shapes.stages == shapes.pre == tuple(tuple(s.shape[1:]) for s in out.stages)
    (out.logits.square().sum() + sum(s.mean() for s in out.pre)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_small_images_are_padded_with_zeros():
    net = build("lenet5", 10, 1)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), net(F.pad(x, (2, 2, 2, 2))))


def test_other_sizes_are_one_clear_line(tmp_path):
    with pytest.raises(SettingError, match=r"student: LeNet5 .* 1x8x8 images .*28x28 or 32x32"):
        prepare(resolve({"student": "lenet5", "method": "ce"}), tmp_path)
