"""FeatureNet: networks with taps of their own, and any other through a trace."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.types import TAPS, Outputs

ALL = frozenset(TAPS)
# (name, channels of the stem and of the stages, width of the embedding)
TRACED = [
    ("timm:resnet18", (64, 64, 128, 256, 512), 512),
    ("torchvision:resnet18", (64, 64, 128, 256, 512), 512),
    ("torchvision:vgg11_bn", (64, 128, 256, 512, 512), 4096),
    ("timm:mobilenetv3_small_050", (16, 8, 16, 24, 288), 1024),
    ("timm:efficientnet_lite0", (32, 16, 24, 40, 112, 1280), 1280),
    ("timm:nfnet_l0", (128, 256, 512, 1536, 2304), 2304),
]


def images(size: int = 64, rows: int = 2) -> Tensor:
    """Random images, the same in every test."""
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def traced(name: str) -> FeatureNet:
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    return FeatureNet(build(name, num_classes=7))


class Functional(nn.Module):
    """Everything that a trace may trip over: in place, functional dropout, constants, buffers."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout2d(0.5, inplace=True)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("scale", torch.full((1, 4, 1, 1), 2.0))

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        if offset is not None:
            x = x + offset
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = self.conv(x * (self.scale + 1) * torch.tensor(0.5).to(x.dtype))
        x = self.drop(x).relu_()
        x = F.dropout(x, 0.3, training=self.training)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Branching(nn.Module):
    """Cannot be traced: the computation depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


@pytest.mark.parametrize(("name", "channels", "width"), TRACED)
def test_traced_shapes(name, channels, width):
    shapes = traced(name).tap_shapes((3, 64, 64), ALL)
    assert shapes.logits == (7,)
    assert shapes.embedding == (width,)
    assert tuple(tap[0] for tap in (shapes.stem, *shapes.stages)) == channels
    sizes = [stage[1] for stage in shapes.stages]
    assert sizes == sorted(sizes, reverse=True)
    assert shapes.pre == shapes.stages


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [TRACED[number][0] for number in (0, 1, 3, 4)])
def test_traced_network_is_the_network(name, training):
    """Same logits, same statistics, same random draws (dropout), nothing changed by tracing."""
    net = traced(name).train(training)
    twin = copy.deepcopy(net.net)
    keys = list(net.net.state_dict())
    net.tap_shapes((3, 64, 64))
    torch.manual_seed(3)
    out = net(images(), ALL)
    torch.manual_seed(3)
    expected = twin(images())
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert list(net.net.state_dict()) == keys
    assert all(module.training == training for module in net.modules())
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(net.net.state_dict()[key], value)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "torchvision:vgg11_bn"])
def test_in_place_activations_leave_pre_activations_alone(name):
    net = traced(name).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # some start as zero, which hides the sign
            nn.init.normal_(module.bias)
    out = net(images(), ALL)
    for stage, pre in zip(out.stages, out.pre, strict=True):
        assert pre.min() < 0
        assert torch.equal(pre.relu(), stage)


def test_traced_taps_are_those_of_our_own_network():
    own = build("resnet14", num_classes=5).eval()
    hidden = FeatureNet(nn.Sequential(own))
    out, expected = hidden(images(32), ALL), own.taps(images(32))
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.embedding, expected.embedding)
    assert torch.equal(out.stem, expected.stem)
    for tap, twin in zip(out.stages + out.pre, expected.stages + expected.pre, strict=True):
        assert torch.equal(tap, twin)


def test_transformer_embedding():
    net = traced("timm:vit_tiny_patch16_224")
    net.net.eval()
    out = net(images(224, rows=1), frozenset({"embedding", "logits"}))
    assert out.embedding.shape == (1, 192)
    torch.testing.assert_close(net.net.head(out.embedding), out.logits)
    assert out.stages == ()


def test_only_what_is_read_is_filled():
    net = traced("timm:resnet18")
    assert net(images(), frozenset()) == Outputs()
    out = net(images(), frozenset({"stages"}))
    assert out.logits is None
    assert out.embedding is None
    assert out.pre == ()
    assert out.stem is None
    assert len(out.stages) == 4
    assert net(images(), frozenset({"stem"})).stem.shape == (2, 64, 32, 32)
    own = FeatureNet(build("resnet8", 5))(images(32), frozenset({"embedding"}))
    assert own.logits is None
    assert own.stages == ()


def test_logits_alone_do_not_trace(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr("fskd.models.taps.trace", refuse)
    assert traced("timm:resnet18")(images()).logits.shape == (2, 7)


@pytest.mark.parametrize("make", [Functional, lambda: build("timm:resnet18", 5)])
def test_copies_are_independent(make: Callable[[], nn.Module]):
    net = FeatureNet(make()).eval()
    before = net(images(), ALL)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1)
        assert not torch.equal(twin(images(), ALL).embedding, before.embedding)
        assert torch.equal(twin(images(), ALL).logits, twin.net(images()))
        assert torch.equal(net(images(), ALL).embedding, before.embedding)


def test_gradients_reach_the_networks_own_parameters():
    net = FeatureNet(Functional())
    out = net(images(), ALL)
    (out.embedding.sum() + sum(tap.square().mean() for tap in out.stages + out.pre)).backward()
    assert net.net.stem.weight.grad is not None
    assert net.net.conv.weight.grad is not None
    assert net.net.fc.weight.grad is None


def test_dtype_and_constants_follow():
    net = FeatureNet(Functional()).eval()
    net(images(), ALL)
    net.double()
    out = net(images().double(), ALL)
    assert out.embedding.dtype == torch.float64
    torch.testing.assert_close(out.logits, net.net(images().double()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_follows():
    net = FeatureNet(Functional()).eval()
    net(images(), ALL)
    net.to("cuda")
    assert net(images().cuda(), ALL).stages[0].is_cuda


def test_functional_network():
    net = FeatureNet(Functional())
    out = net(images(), ALL)
    assert [tuple(tap.shape[1:]) for tap in (out.stem, *out.stages)] == [(4, 64, 64), (8, 32, 32)]
    assert out.pre[0].min() < 0
    assert torch.equal(out.pre[0].relu(), out.stages[0])
    torch.manual_seed(2)
    first = net(images(), ALL).logits
    torch.manual_seed(2)
    assert torch.equal(first, net.net(images()))
    assert not torch.equal(net(images(), ALL).logits, first)
    net.eval()
    assert torch.equal(net(images(), ALL).logits, net(images(), ALL).logits)


def test_tracing_leaves_random_state_and_statistics():
    net = FeatureNet(Functional())
    state = copy.deepcopy(net.state_dict())
    random = torch.random.get_rng_state()
    net.net.norm.eval()
    net.tap_shapes((3, 32, 32), ALL)
    assert torch.equal(random, torch.random.get_rng_state())
    assert net.net.training
    assert not net.net.norm.training
    for key, value in state.items():
        assert torch.equal(net.state_dict()[key], value)


def test_untraceable_network_has_logits_only():
    net = FeatureNet(Branching())
    x = torch.randn(2, 3, 2, 2)
    assert net(x).logits.shape == (2, 5)
    shapes = net.tap_shapes((3, 2, 2))
    assert shapes == ((5,), (), (), (), (), ())
    with pytest.raises(SettingError, match=r"'Branching' \(embedding cannot be read: .*control"):
        net(x, frozenset({"embedding", "logits"}))
    with pytest.raises(SettingError, match=r"student\.taps or teacher\.taps of \[") as caught:
        net.tap_shapes((3, 2, 2), frozenset({"stages"}))
    assert "\n" not in str(caught.value)
    assert [p.shape for p in Branching().parameters()] == [(5, 12), (5,)]
    assert net.feature_parameters() == []


def test_a_network_without_linear_layer_has_stages_only():
    net = traced("torchvision:squeezenet1_1")
    assert len(net.tap_shapes((3, 64, 64)).stages) > 2
    with pytest.raises(SettingError, match=r"torch\.nn\.Linear"):
        net(images(), frozenset({"embedding"}))
    with pytest.raises(SettingError, match="linear layer"):
        net.feature_parameters()


def test_a_compiled_network_is_taken_as_it_is():
    net = Functional().eval()
    wrapped = FeatureNet(torch.compile(net, backend="eager"))
    assert wrapped.net is net
    assert torch.equal(wrapped(images()).logits, net(images()))


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet8", "fc"),
        ("mobilenetv2", "classifier.0"),
        ("timm:resnet18", "fc"),
        ("torchvision:mobilenet_v2", "classifier.1"),
        ("timm:vit_tiny_patch16_224", "head"),
    ],
)
def test_feature_parameters(name, classifier):
    net = traced(name) if ":" in name else FeatureNet(build(name, 7))
    features = {id(p) for p in net.feature_parameters()}
    left = {key for key, p in net.net.named_parameters() if id(p) not in features}
    assert left == {f"{classifier}.weight", f"{classifier}.bias"}


def test_state_dict_is_the_networks():
    net = traced("timm:resnet18")
    net(images(), ALL)
    assert list(net.state_dict()) == [f"net.{key}" for key in net.net.state_dict()]
    assert net.net.fc.weight is dict(net.named_parameters())["net.fc.weight"]
