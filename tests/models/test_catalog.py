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


def sized_net(num_classes: int, width: int, act: str = "relu") -> nn.Module:
    """A user's function with arguments of its own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.Linear(width, num_classes))


def test_arguments_of_timm():
    pytest.importorskip("timm")
    net = build("timm:vit_tiny_patch16_224?img_size=48&drop_path_rate=0.1&depth=2", 5).eval()
    assert net(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    assert net.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    assert build("efficientnet_b0?drop_rate=0.3", 5).drop_rate == 0.3


def test_arguments_of_torchvision():
    pytest.importorskip("torchvision")
    net = build("torchvision:mobilenet_v2?width_mult=0.25&dropout=1e-1", 5)
    assert net.classifier[0].p == 0.1
    assert net.features[0][0].out_channels == 8


def test_arguments_of_ones_own_function():
    assert build(f"{__name__}:sized_net?width=7&act=gelu", 5)[1].out_features == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:vit_tiny_patch16_224?imgsize=48", "unexpected keyword argument 'imgsize'"),
        ("timm:resnet18?imgsize=48", "imgsize"),
        ("torchvision:resnet18?depth=3", "unexpected keyword argument 'depth'"),
        ("resnet8?depth=3", "unexpected keyword argument 'depth'"),
        (f"{__name__}:sized_net?widths=3", "unexpected keyword argument 'widths'"),
        ("timm:resnet18?num_classes=3", "num_classes is set already"),
        ("timm:resnet18?pretrained=true", "pretrained is set already"),
        ("timm:resnet18?drop_rate=0&drop_rate=0", "drop_rate is given twice"),
        ("timm:resnet18?", r"name\?argument=value"),
        ("timm:resnet18?drop_rate", r"name\?argument=value"),
        ("timm:resnet18?drop_rate=[", "not valid YAML"),
    ],
)
def test_arguments_that_are_refused(name, says):
    for library in ("timm", "torchvision"):
        pytest.importorskip(library)
    with pytest.raises(SettingError, match=says) as caught:
        build(name, 5)
    assert "\n" not in str(caught.value)
