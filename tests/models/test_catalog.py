"""Networks by name: our own, timm's, torchvision's and a user's function."""

import sys

import pytest
import torch
from torch import nn

from fskd.errors import SettingError
from fskd.models import catalog
from fskd.models.catalog import build, models


def linear_net(num_classes: int) -> nn.Module:
    """A user's function that knows one image size."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def channel_net(num_classes: int, in_channels: int) -> nn.Module:
    """A user's function that takes any number of channels."""
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))


def not_a_net(**settings: int) -> dict[str, int]:
    """A user's mistake."""
    return settings


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "cnn_tiny"])
def test_own_names_come_first(name):
    assert type(build(name, 10)).__module__.startswith("fskd.models")


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("timm:resnet18", "timm"),
        ("torchvision:resnet18", "torchvision"),
        ("timm:resnet50", "timm"),
        ("efficientnet_b0", "timm"),
        ("shufflenet_v2_x0_5", "torchvision"),
        ("resnet18.a1_in1k", "timm"),
    ],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_library_names(name, library, in_channels):
    pytest.importorskip(library)
    net = build(name, num_classes=7, in_channels=in_channels).eval()
    assert type(net).__module__.startswith(library)
    with torch.no_grad():
        assert net(torch.randn(2, in_channels, 64, 64)).shape == (2, 7)


def test_functions_of_ones_own():
    assert build(f"{__name__}:linear_net", 5, 1)[1].out_features == 5
    assert build(f"{__name__}:channel_net", 5, 2)[0].in_channels == 2


def test_a_function_must_return_a_network():
    with pytest.raises(SettingError, match="returned dict"):
        build(f"{__name__}:not_a_net", 5)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:misspelt", ":f", "math:"])
def test_functions_that_cannot_be_imported(name):
    with pytest.raises(SettingError, match=r"package\.module:function"):
        build(name, 5)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet8x5", "'resnet8x4' (nearest)"),
        ("wrn-16-2", "'wrn_16_2' (nearest)"),
        ("mobilnetv2", "'mobilenetv2' (nearest)"),
        ("efficientnet_b00", "'efficientnet_b0' (nearest)"),
        ("torchvision:resnt18", "'torchvision:resnet18' (nearest)"),
        ("timm:resnt18", "'timm:resnet18' (nearest)"),
    ],
)
def test_unknown_names_get_the_nearest(name, nearest):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(SettingError) as caught:
        build(name, 5)
    message = str(caught.value)
    assert nearest in message
    assert "\n" not in message
    assert len(message) < 1000


def test_unknown_plain_names_list_ours():
    with pytest.raises(SettingError) as caught:
        build("qqqq", 5)
    assert all(name in str(caught.value) for name in models.names())
    assert catalog.OTHERS in str(caught.value)


def test_without_the_libraries(monkeypatch):
    for library in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, f"{library}.models", None)
    assert build("resnet8", 10) is not None
    with pytest.raises(SettingError, match="timm cannot be imported"):
        build("timm:resnet18", 10)
    with pytest.raises(SettingError, match="any timm or torchvision name"):
        build("efficientnet_b0", 10)
