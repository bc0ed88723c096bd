"""The CIFAR networks: layout, recorded outputs, sizes, taps."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fskd.models.catalog import build, models
from fskd.models.taps import FeatureNet
from fskd.types import TAPS

ZOO = [
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *("resnet8x4", "resnet32x4", "resnet50"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *(f"vgg{depth}" for depth in (8, 11, 13, 16, 19)),
    *("mobilenetv2", "shufflenetv1", "shufflenetv2"),
]
# One of each family; the others differ in depth and width only.
FAMILIES = ["resnet14", "resnet50", "wrn_16_1", "vgg11", "mobilenetv2", *ZOO[-2:]]
ALL = frozenset(TAPS)


def test_every_network_is_registered():
    assert len(ZOO) == 22
    assert set(ZOO) <= set(models.names())


@pytest.mark.parametrize("name", ZOO)
def test_state_dict_is_the_public_one(name, zoo_state_dicts):
    with torch.device("meta"):
        state = build(name, num_classes=100).state_dict()
    shapes = {key: list(tensor.shape) for key, tensor in state.items()}
    assert list(shapes.items()) == list(zoo_state_dicts[name].items())


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "wrn_16_2", "vgg8"])
def test_outputs_are_the_recorded_ones(name, zoo_outputs, draw_weights):
    recorded = zoo_outputs[name]
    net = build(name, num_classes=100).double().eval()
    draw_weights(net, recorded["seed"])
    generator = np.random.RandomState(recorded["seed"] + 500)
    x = torch.from_numpy(generator.standard_normal((2, 3, 32, 32)))
    with torch.no_grad():
        out = net.taps(x)
    expected = torch.tensor(recorded["logits"], dtype=torch.float64)
    torch.testing.assert_close(out.logits[:, :8], expected, rtol=1e-9, atol=1e-9)
    norms = torch.tensor(recorded["embedding_norm"], dtype=torch.float64)
    torch.testing.assert_close(out.embedding.norm(dim=1), norms, rtol=1e-9, atol=1e-9)
    shapes = [list(tap.shape) for tap in (out.stem, *out.stages, out.embedding)]
    assert shapes == recorded["stage_shapes"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.28),
        ("resnet56", 0.86),
        ("resnet110", 1.74),
        ("resnet8x4", 1.23),
        ("resnet32x4", 7.43),
        ("wrn_16_2", 0.70),
        ("wrn_40_2", 2.26),
        ("vgg8", 3.97),
        ("vgg13", 9.46),
    ],
)
def test_parameter_count(name, millions):
    with torch.device("meta"):
        net = build(name, num_classes=100)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_agree_with_each_other(name):
    net = build(name, num_classes=7)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net.eval()
    with torch.no_grad():
        out = net.taps(x)
        assert torch.equal(net(x), out.logits)
        classifier = net.get_submodule(net.classifier_name)
        assert torch.equal(classifier(out.embedding), out.logits)
    assert len(out.stages) == len(out.pre) == net.n_stages >= 3
    for stage, pre in zip(out.stages, out.pre, strict=True):
        if name.startswith("wrn"):
            # The ReLU belongs to the next block, behind its normalisation.
            assert stage.shape == pre.shape
        elif name == "mobilenetv2":
            assert stage is pre
        else:
            assert torch.equal(pre.relu(), stage)
    shapes = FeatureNet(net).tap_shapes((3, 32, 32), ALL)
    assert shapes.logits == (7,)
    assert shapes.embedding == tuple(out.embedding.shape[1:])
    assert shapes.stem == tuple(out.stem.shape[1:])
    assert shapes.stages == shapes.pre == tuple(tuple(s.shape[1:]) for s in out.stages)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_from_every_tap(name):
    net = build(name, num_classes=5)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = net.taps(x)
    taps = (out.stem, *out.stages, *out.pre)
    (out.logits.square().sum() + sum(t.square().mean() for t in taps)).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_wrn_pre_activation_is_the_norm_of_the_next_block():
    net = build("wrn_16_1", num_classes=5).eval()
    out = net.taps(torch.randn(2, 3, 32, 32))
    follow = (net.block2.layer[0].bn1, net.block3.layer[0].bn1, net.bn1)
    for stage, pre, norm in zip(out.stages, out.pre, follow, strict=True):
        assert torch.equal(norm(stage), pre)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("cnn_small", ["stages.1.1.1", "stages.2.0.1"]),
        ("lenet5", [None] * 2),
        ("resnet8", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("resnet20", ["layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"]),
        ("resnet50", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
        ("wrn_16_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg8", [f"block{number}.1" for number in (1, 2, 3, 4)]),
        ("vgg13", [f"block{number}.4" for number in (1, 2, 3, 4)]),
        ("mobilenetv2", [f"blocks.{at}.conv.7" for at in ("1.1", "2.2", "4.2", "6.0")]),
        ("shufflenetv1", ["layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
        # Its maps are half a block's input, shuffled.
        ("shufflenetv2", [None] * 3),
    ],
)
def test_norms_before_pre_activations(name, paths):
    in_channels = 1 if name.startswith(("cnn", "lenet")) else 3
    net = build(name, 5, in_channels)
    shapes = FeatureNet(net).tap_shapes((in_channels, 32, 32))
    assert list(shapes.norms) == [path and net.get_submodule(path) for path in paths]


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_update_statistics_once(name):
    net = build(name, num_classes=5)
    net.taps(torch.randn(2, 3, 32, 32))
    counts = [v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(count == 1 for count in counts)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 64, 64), (4, 32, 32)])
def test_other_sizes(name, size):
    net = build(name, num_classes=3, in_channels=size[0]).eval()
    with torch.no_grad():
        assert net(torch.randn(2, *size)).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "wrn_16_1", "mobilenetv2"])
def test_convolutions_start_with_the_published_scale(name):
    torch.manual_seed(0)
    for module in build(name, num_classes=10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_own_networks_need_neither_timm_nor_torchvision():
    code = (
        "import sys\n"
        "from fskd.models.catalog import build\n"
        "from fskd.models.taps import FeatureNet\n"
        "import fskd.models.checkpoint\n"
        "FeatureNet(build('resnet8', 10)).tap_shapes((3, 32, 32))\n"
        "assert not {'timm', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
