"""1x1 convolutions by least squares, merged: the function stays, and errors fall at every block."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fskd.models.block_ends import block_ends
from fskd.models.calls import Listener, record
from fskd.models.catalog import build
from fskd.models.pointwise import Moments, Pointwise, fit_pointwise, merge


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(x: Tensor) -> list[list[float]]:
    """One vector of channels for each pixel, by loops."""
    n, _, height, width = x.shape
    return [x[i, :, j, k].tolist() for i in range(n) for j in range(height) for k in range(width)]


@pytest.mark.parametrize("bias", [True, False])
def test_least_squares_of_a_library(bias: bool) -> None:
    """The same as lstsq over rows that are written one by one."""
    student, teacher, mask = maps(3, 4, 2, 3), maps(3, 6, 2, 3, seed=1) + 2, [0, 2, 3, 5]
    rows = [[*x, 1.0] if bias else x for x in columns(student)]
    goals = [[y[i] for i in mask] for y in columns(teacher)]
    wanted = torch.linalg.lstsq(torch.tensor(rows), torch.tensor(goals), driver="gelsd").solution
    found = fit_pointwise(student, teacher, torch.tensor(mask), bias=bias)
    wanted = wanted.double()
    torch.testing.assert_close(found.weight, wanted[:4].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.bias, wanted[4] if bias else torch.zeros(4).double(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_minimum_by_gradient(bias: bool, ridge: float) -> None:
    """The gradient of the objective, as it is written in the docstring, is 0."""
    x, y = maps(2, 3, 2, 2), maps(2, 3, 2, 2, seed=1) - 1
    found = fit_pointwise(x, y, torch.arange(3), bias=bias, ridge=ridge)
    weight, shift = (value.clone().requires_grad_() for value in found)
    loss = (torch.einsum("oc,nchw->nohw", weight, x) + shift[:, None, None] - y).square().sum()
    centred = x - x.mean((0, 2, 3), keepdim=True) if bias else x
    loss = loss + ridge * centred.square().sum() / 3 * (weight - torch.eye(3)).square().sum()
    slopes = torch.autograd.grad(loss, (weight, shift) if bias else (weight,))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-10


def test_unseen_directions_stay_as_they_are() -> None:
    """A dead channel, and fewer pixels than channels: Q is the identity where nothing is known."""
    x = maps(4, 3, 2, 2)
    x[:, 1] = 0
    found = fit_pointwise(x, 2 * x, torch.arange(3))
    torch.testing.assert_close(found.weight, torch.diag(torch.tensor([2.0, 1, 2]).double()))
    one = maps(1, 5, 1, 1)
    q = fit_pointwise(one, 3 * one, torch.arange(5)).weight
    torch.testing.assert_close(q @ one.flatten(), 3 * one.flatten())
    across = maps(5, seed=4)
    across -= one.flatten() * (across @ one.flatten()) / one.flatten().square().sum()
    torch.testing.assert_close(q @ across, across)
    zero = torch.zeros(2, 3, 2, 2)
    for bias in (True, False):
        layer = fit_pointwise(zero, zero + 1, torch.arange(3), bias=bias)
        assert torch.equal(layer.weight, torch.eye(3).double())
        assert torch.equal(layer.bias, torch.full((3,), float(bias)).double())


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("bias", [True, False])
def test_errors_are_those_of_the_maps_and_never_rise(bias: bool, ridge: float) -> None:
    for seed in range(5):
        x = maps(1, 6, 2, 2, seed=seed)  # fewer pixels than channels
        y = x + 0.5 * maps(1, 6, 2, 2, seed=seed + 50)
        moments = Moments()
        for i in range(2):  # two pixels at a time
            moments.add(x[:, :, i : i + 1], y[:, :, i : i + 1])
        layer = moments.fit(bias, ridge)
        made = torch.einsum("oc,nchw->nohw", layer.weight, x) + layer.bias[:, None, None]
        assert moments.error() == pytest.approx(float((x - y).square().mean()))
        assert moments.error(layer) == pytest.approx(float((made - y).square().mean()), abs=1e-12)
        assert moments.error(layer) <= moments.error() + 1e-12


def stirred(*layers: nn.Module) -> nn.Sequential:
    """Layers in eval mode whose weights and statistics are all different."""
    torch.manual_seed(0)
    net = nn.Sequential(*layers)
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 2)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
    return net.eval()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_merged_is_unmerged(normed: bool, has_bias: bool) -> None:
    """In eval mode exactly; in train mode nearly, on the pixels that were seen."""
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=has_bias)
    net = stirred(conv, *([nn.BatchNorm2d(4)] if normed else []))
    images = torch.randn(6, 3, 5, 5)
    layer = Pointwise(maps(4, 4), maps(4, seed=1) * (normed or has_bias))
    with torch.no_grad():
        before, moments = net(images), Moments()
        moments.add(before, before)
        merge(layer, conv, net[1] if normed else None, moments)
        behind = F.conv2d(before, layer.weight.float()[..., None, None], layer.bias.float())
        torch.testing.assert_close(net(images), behind, rtol=1e-5, atol=1e-5)
        if normed:
            torch.testing.assert_close(net.train()(images), behind, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("wrn_16_1", (3, 16, 16), ["block1.layer.0.conv2 -", "block1.layer.1.conv2 -"]),
        ("resnet8", (3, 16, 16), ["conv1 bn1", "layer1.0.conv2 layer1.0.bn2"]),
        ("vgg8", (3, 16, 16), ["block0.0 block0.1", "block1.0 block1.1"]),
        ("lenet5", (1, 28, 28), ["conv1 -", "conv2 -"]),
        ("mobilenetv2", (3, 32, 32), ["conv1.0 conv1.1", "blocks.0.0.conv.0 blocks.0.0.conv.1"]),
    ],
)
def test_where_blocks_end(name: str, size: tuple[int, ...], expected: list[str]) -> None:
    """Any layer merged at an end changes its map, and its map alone, by that layer."""
    torch.manual_seed(0)
    net = build(name, 10, size[0]).eval()
    ends = block_ends(net, record(net, size))
    named = [f"{end.conv} {end.norm or '-'}" for end in ends]
    assert [one for one in named if one in expected] == expected
    images, end = torch.randn(4, *size), ends[1]
    twin = copy.deepcopy(net)
    conv, moments = twin.get_submodule(end.conv), Moments()
    norm = None if end.norm is None else twin.get_submodule(end.norm)
    with torch.no_grad():
        with Listener([end.tail, end.out]) as old:
            net(images)
        branch, out = old.found[end.tail], old.found[end.out]
        moments.add(branch, branch)
        n = branch.shape[1]
        layer = Pointwise(torch.eye(n).double().flip(0), torch.zeros(n).double())
        merge(layer, conv, norm, moments)
        with Listener([end.out]) as new:
            twin(images)
    wanted = out - branch + branch.flip(1)
    torch.testing.assert_close(new.found[end.out], wanted, rtol=1e-4, atol=1e-4)


def test_what_a_later_call_overwrites_is_copied() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).relu_()

    images = -torch.ones(1, 2, 2, 2)
    with Listener([0]) as listener:
        InPlace()(images)
    assert torch.equal(listener.found[0], 2 * images)
