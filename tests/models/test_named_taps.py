"""Taps of modules by name, in networks that cannot be traced too."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.losses.features import attention_map
from fskd.models.catalog import build
from fskd.models.named_taps import as_map
from fskd.models.restricted import Restricted
from fskd.models.sections import section
from fskd.models.taps import FeatureNet
from fskd.types import Outputs

READ = frozenset({"logits", "embedding", "stages", "pre"})


def images(size: int = 48) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


class Branching(nn.Module):
    """Cannot be traced; holds a shared module, an idle one, and one whose output is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.idle = nn.Identity()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.relu(x) if x.sum() > 0 else self.relu(-x)
        return self.fc(self.relu(self.second(x)).mean((2, 3)))


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def vit() -> FeatureNet:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    net = build("timm:vit_tiny_patch16_224?img_size=48&depth=3", num_classes=5)
    return FeatureNet(net, ["blocks.1", "blocks.2"])


def hugging_face() -> FeatureNet:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        image_size=48, patch_size=16, num_labels=5,
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config)
    names = [name for name, m in net.named_modules() if type(m).__name__ == "ViTLayer"]
    return FeatureNet(net, names[1:3])


def swin() -> FeatureNet:
    pytest.importorskip("timm")
    small = "img_size=64&window_size=2&embed_dim=24&depths=[1,1,1,1]"
    net = build(f"timm:swin_tiny_patch4_window7_224?{small}", num_classes=5)
    return FeatureNet(net, ("layers.0", "layers.2"))


@pytest.mark.parametrize(
    ("make", "size", "maps", "width"),
    [
        (vit, 48, ((192, 3, 3),) * 2, 192),
        (hugging_face, 48, ((32, 3, 3),) * 2, 32),
        (swin, 64, ((24, 16, 16), (96, 4, 4)), 192),
        (lambda: FeatureNet(Branching(), ("first", "second")), 48, ((4, 48, 48), (6, 24, 24)), 6),
        (lambda: FeatureNet(build("resnet8", 5), "layer2.0"), 32, ((32, 16, 16),), 64),
    ],
)
def test_maps_that_methods_can_read(make, size, maps, width):
    """Shapes, the embedding behind the logits, and gradients of attention transfer."""
    net = make()
    shapes = net.tap_shapes((3, size, size), READ)
    assert shapes == ((5,), (width,), maps, maps, (), (None,) * len(maps))
    assert net.training
    out = net(images(size), READ)
    torch.testing.assert_close(net._classifier()(out.embedding), out.logits)
    assert [tuple(tap.shape[1:]) for tap in out.stages] == list(maps)
    target = tuple(torch.rand_like(tap) for tap in out.stages)
    pairs = zip(out.stages, target, strict=True)
    sum((attention_map(a) - attention_map(b)).square().sum() for a, b in pairs).backward()
    first = next(p for p in net.parameters() if p.dim() == 4)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert net._classifier().weight.grad is None
    assert hooks(net) == 0


def test_tokens_keep_their_places():
    net = vit().eval()
    tokens: list[Tensor] = []
    net.net.blocks[1].register_forward_hook(lambda *args: tokens.append(args[2]))
    maps = net(images(), READ).stages[0]
    assert torch.equal(maps[:, :, 1, 2], tokens[0][:, 1 + 3 + 2])  # behind the class token


def test_outputs_are_those_of_the_modules_before_anything_overwrites_them():
    net = FeatureNet(Branching(), ("second", "first"))
    out = net(images(), READ)
    first = net.net.first(images())
    assert torch.equal(out.stages[1], first)
    assert out.stages[0].min() < 0
    assert torch.equal(out.logits, net.net(images()))


def test_only_what_is_read_is_filled():
    net = FeatureNet(Branching(), ("second",))
    out = net(images(), frozenset({"pre"}))
    assert (out.logits, out.embedding, out.stages, len(out.pre)) == (None, None, (), 1)
    assert net(images(), frozenset()) == Outputs()


def test_copies_and_pickles_are_independent():
    net = FeatureNet(Branching(), ("second",)).eval()
    before = net(images(), READ)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        assert not torch.equal(twin(images(), READ).stages[0], before.stages[0])
        assert torch.equal(net(images(), READ).embedding, before.embedding)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of dynamo's own looking
def test_in_a_compiled_pass():
    net = FeatureNet(Branching(), ("second",)).eval()
    plain = net(images(), READ)
    net.compile(backend="eager")
    torch.testing.assert_close(net(images(), READ), plain)
    assert hooks(net) == 0


def test_no_hook_is_left_after_a_failure():
    net = FeatureNet(Branching(), ("first",))
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.zeros(2, 1, 8, 8), READ)
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["secnd"], "'secnd' is not accepted; expected modules of Branching, such as second"),
        (["first", "first"], "each name once"),
        ([""], "''"),
    ],
)
def test_names_are_checked_at_once(names, says):
    with pytest.raises(SettingError, match=says):
        FeatureNet(Branching(), names)


@pytest.mark.parametrize(
    ("name", "says"), [("idle", r"'idle' \(it was not called"), ("relu", "called 2 times")]
)
def test_a_module_must_be_called_once(name, says):
    with pytest.raises(SettingError, match=says):
        FeatureNet(Branching(), [name])(images(), READ)


def test_no_stem():
    net = FeatureNet(Branching(), ["first"])
    assert net.tap_shapes((3, 8, 8), frozenset({"stem", "stages"})).stem == ()
    out = net(images(), frozenset({"stem", "stages"}))
    assert out.stem is None
    assert out.rows(slice(1)).stem is None


def test_sections_are_refused():
    net = FeatureNet(build("resnet8", 5), ("layer2",))
    with pytest.raises(SettingError, match="cannot be cut where taps= names"):
        section(net, 0, None, (3, 32, 32))


def test_a_restricted_network_has_the_same_taps():
    net = Restricted(FeatureNet(Branching(), ("second",)), torch.tensor([0, 2]))
    shapes = net.tap_shapes((3, 8, 8), READ)
    assert (shapes.logits, shapes.stages, shapes.norms) == ((2,), ((6, 4, 4),), (None,))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 7, 5, 3), (2, 7, 5, 3)),
        ((2, 6, 6, 3), (2, 3, 6, 6)),
        ((2, 4, 4, 4), (2, 4, 4, 4)),
        ((2, 9, 7), (2, 7, 3, 3)),
        ((2, 11, 7), (2, 7, 3, 3)),
        ((2, 7), (2, 7, 1, 1)),
    ],
)
def test_shapes(shape, expected):
    assert as_map(nn.Identity(), "a", torch.zeros(shape)).shape == expected


def test_the_network_says_its_grid():
    net = nn.Module()
    net.patch_embed = nn.Module()
    net.patch_embed.grid_size, net.num_prefix_tokens = (2, 8), 2
    assert as_map(net, "a", torch.zeros(2, 18, 5)).shape == (2, 5, 2, 8)
    assert as_map(net, "a", torch.zeros(2, 16, 5)).shape == (2, 5, 2, 8)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(2, 140, 5), "a 2x140x5 tensor of float32"),
        (torch.zeros(2, 3, dtype=torch.long), "a 2x3 tensor of int64"),
        (torch.zeros(2), "a 2 tensor"),
        ("text", "a str"),
    ],
)
def test_what_is_no_map(value, says):
    with pytest.raises(SettingError, match=rf"'a' \(its output is {says}"):
        as_map(nn.Identity(), "a", value)
