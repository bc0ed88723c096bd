"""Traced networks: what is their stem, their stages and the norm before each pre-activation."""

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.catalog import build, models
from fskd.models.taps import FeatureNet
from fskd.types import TAPS, Outputs

ALL = frozenset(TAPS)
# VGG and LeNet look at the size of their maps, which torch.fx cannot follow.
TRACEABLE = [name for name in models.names() if not name.startswith(("vgg", "lenet"))]
# The last map at the last resolution is that of the head: a 1x1 convolution, or BN and ReLU.
WITH_HEAD = ("mobilenetv2", "shufflenetv2", "wrn")

# Shapes of stem and stages for images of 64x64.
SHAPES = {
    "timm:resnet18": [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
    "timm:resnet50d": [(64, 32), (256, 16), (512, 8), (1024, 4), (2048, 2)],
    "timm:mobilenetv2_100": [(32, 32), (16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)],
    "timm:efficientnet_b0": [(32, 32), (16, 32), (24, 16), (40, 8), (112, 4), (1280, 2)],
    "timm:vgg11_bn": [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)],
    "timm:densenet121": [(64, 32), (128, 16), (256, 8), (512, 4), (1024, 2)],
    "timm:regnetx_002": [(32, 32), (24, 16), (56, 8), (152, 4), (368, 2)],
    "timm:convnext_atto": [(40, 16), (40, 16), (80, 8), (160, 4), (320, 2)],
    "torchvision:resnet18": [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
    "torchvision:mobilenet_v3_small": [(16, 32), (16, 16), (24, 8), (48, 4), (576, 2)],
    # Stem of three convolutions at two resolutions: the first is no stage.
    "torchvision:googlenet": [(192, 16), (480, 8), (832, 4), (1024, 2)],
}


def made(name: str, size: int = 32) -> tuple[nn.Module, Tensor]:
    """A network and images for it, the same in every test."""
    in_channels = 1 if name.startswith("cnn") else 3
    torch.manual_seed(0)
    return build(name, 7, in_channels), torch.randn(2, in_channels, size, size)


@pytest.mark.parametrize("name", TRACEABLE)
def test_a_plain_module_around_it_changes_nothing(name):
    net, x = made(name)
    net.eval()
    with torch.no_grad():
        out, expected = FeatureNet(nn.Sequential(net)).eval()(x, ALL), net.taps(x)
    end = -1 if name.startswith(WITH_HEAD) else None
    assert len(out.stages) == len(expected.stages) == len(out.pre)
    assert torch.equal(out.stem, expected.stem)
    for stage, twin in zip(out.stages[:end], expected.stages[:end], strict=True):
        assert torch.equal(stage, twin)


@pytest.mark.parametrize("name", SHAPES)
def test_stem_and_stages_of_libraries(name):
    pytest.importorskip(name.partition(":")[0])
    shapes = FeatureNet(build(name, 5)).tap_shapes((3, 64, 64), ALL)
    assert [shape[:2] for shape in (shapes.stem, *shapes.stages)] == SHAPES[name]


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("timm:resnet18", [f"layer{number}.1.bn2" for number in (1, 2, 3, 4)]),
        ("timm:regnetx_002", [f"s{at}.conv3.bn" for at in ("1.b1", "2.b1", "3.b4", "4.b7")]),
        (
            "timm:mobilenetv2_100",
            ["blocks.0.0.bn2", *(f"blocks.{at}.bn3" for at in ("1.1", "2.2", "4.2")), "bn2"],
        ),
        ("timm:convnext_atto", [None] * 4),
        ("torchvision:resnet18", [f"layer{number}.1.bn2" for number in (1, 2, 3, 4)]),
    ],
)
def test_norms_of_libraries(name, paths):
    pytest.importorskip(name.partition(":")[0])
    net = build(name, 5)
    norms = FeatureNet(net).tap_shapes((3, 64, 64)).norms
    assert list(norms) == [path and net.get_submodule(path) for path in paths]


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet50", "shufflenetv1"])
def test_norms_are_those_of_the_residual_branch(name):
    net, x = made(name)
    named = FeatureNet(net).tap_shapes(tuple(x.shape[1:])).norms
    assert FeatureNet(nn.Sequential(net)).tap_shapes(tuple(x.shape[1:])).norms == named


class Swish(nn.Module):
    """A residual network without blocks of its own, and an activation that goes two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, 4, 3, padding=1) for a in (3, 4, 4))
        self.down = nn.Conv2d(4, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        x = x * x.sigmoid()
        x = x + self.convs[2](self.convs[1](x).relu())
        return self.fc(self.down(x.relu()).relu().mean((2, 3)))


def test_stem_without_block_modules_ends_where_the_map_goes_two_ways():
    net = Swish().eval()
    x = torch.randn(2, 3, 16, 16)
    before = net.convs[0](x)
    out = FeatureNet(net)(x, ALL)
    assert torch.equal(out.stem, before * before.sigmoid())
    assert [tuple(stage.shape[1:]) for stage in out.stages] == [(4, 16, 16), (8, 8, 8)]


def test_plain_network_of_one_resolution_has_its_first_convolution_as_stem():
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    out = FeatureNet(net)(x, ALL)
    assert torch.equal(out.stem, net[:3](x))
    assert [torch.equal(stage, net[:6](x)) for stage in out.stages] == [True]


def test_networks_without_a_stem_say_so():
    net = FeatureNet(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    with pytest.raises(SettingError, match=r"stem cannot be read.*no convolution"):
        net(torch.zeros(2, 3, 2, 2), frozenset({"stem"}))
    assert net.tap_shapes((3, 2, 2)).stem == ()

    class Own(nn.Module):
        def taps(self, x: Tensor) -> Outputs:
            return Outputs(logits=x)

    with pytest.raises(SettingError, match="gives no stem"):
        FeatureNet(Own())(torch.zeros(2, 3), frozenset({"stem"}))


def test_rows_of_outputs_have_the_stem():
    net, x = made("resnet8")
    out = net.taps(x)
    assert torch.equal(out.rows(slice(1)).stem, out.stem[:1])
    assert Outputs().rows(slice(1)) == Outputs()
