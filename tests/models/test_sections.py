"""Sections: equal to the network between two of its maps, with its modules and no others."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.catalog import build, models
from fskd.models.restricted import Restricted
from fskd.models.sections import reinitialised, section
from fskd.models.taps import FeatureNet
from fskd.types import TAPS, Outputs

ALL = frozenset(TAPS)
SIZES = {"cnn_tiny": 8, "cnn_small": 8, "cnn_medium": 28, "lenet5": 28, "lenet5_half": 32}
NAMES = (*models.names(), "timm:resnet18", "timm:mobilenetv2_100")


def made(name: str) -> tuple[FeatureNet, Tensor]:
    """A network and two images of its natural size."""
    if ":" in name:
        pytest.importorskip("timm")
    in_channels = 1 if name in SIZES else 3
    side = 64 if ":" in name else SIZES.get(name, 32)
    torch.manual_seed(0)
    return FeatureNet(build(name, 7, in_channels)), torch.randn(2, in_channels, side, side)


def size_of(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def pieces(n_stages: int) -> Iterator[tuple[int | str | None, int | None]]:
    """Sections that begin at every cut, to the next stage and to the logits, and whole ones."""
    starts = (None, "stem", *range(n_stages))
    for number, after in enumerate(starts):
        yield after, None
        following = max(number - 1, 0)
        if following < n_stages:
            yield after, following
    yield None, n_stages - 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_section_is_the_network_between_two_maps(name, training):
    net, x = made(name)
    net.train(training)
    out = net(x, ALL)
    maps = {None: x, "stem": out.stem, **dict(enumerate(out.stages))}
    for after, upto in pieces(len(out.stages)):
        part = section(net, after, upto, size_of(x))
        fed = maps[after].detach().clone().requires_grad_()
        given = part(fed)
        if upto is None:
            assert torch.equal(given.logits, out.logits)
            assert torch.equal(given.embedding, out.embedding)
            end = given.logits
        else:
            (end,) = given.stages
            assert torch.equal(end, out.stages[upto])
            assert all(torch.equal(pre, out.pre[upto]) for pre in given.pre)
            # The norm that would give it stands behind the section.
            assert len(given.pre) == (not name.startswith("wrn"))
        net.zero_grad()
        end.square().sum().backward()
        assert fed.grad is not None
        used = {id(parameter) for parameter in net.parameters() if parameter.grad is not None}
        assert {id(parameter) for parameter in part.parameters()} == used != set()
        assert set(part.state_dict()) <= set(net.state_dict())


def test_stages_are_counted_from_the_end_too():
    net, x = made("resnet8")
    parts = [section(net, after, upto, size_of(x)) for after, upto in ((0, -1), (-3, 2))]
    assert parts[0].state_dict().keys() == parts[1].state_dict().keys()


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet18"])
def test_section_follows_the_network(name):
    net, x = made(name)
    part = section(net, 1, None, size_of(x))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    net.eval()
    out = net(x, ALL)
    assert torch.equal(part(out.stages[1]).logits, out.logits)
    assert not any(module.training for module in part.modules() if not list(module.children()))


class Dropping(nn.Module):
    """Functional dropout, which a trace fixes, and an activation whose result is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, 2, 1)
        self.last = nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x).relu()).relu()
        x = self.last(x)
        x.relu_()
        x = nn.functional.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.fc(x)


def test_mode_and_dropped_results_of_a_traced_network():
    net, x = FeatureNet(Dropping()), torch.randn(2, 3, 16, 16)
    part = section(net, 0, None, (3, 16, 16))
    for training in (True, False):
        net.train(training)
        torch.manual_seed(1)
        out = net(x, ALL)
        torch.manual_seed(1)
        assert torch.equal(part(out.stages[0]).logits, out.logits)


@pytest.mark.parametrize("name", ["resnet8", "lenet5", "timm:resnet18"])
def test_fresh_section_has_parameters_of_its_own(name):
    net, x = made(name)
    part = section(made(name)[0], 0, None, size_of(x))
    shared = section(net, 0, None, size_of(x))
    assert not set(part.parameters()) & set(net.parameters())
    assert part.state_dict().keys() == shared.state_dict().keys()
    part.eval()
    stage = net.eval()(x, ALL).stages[0].detach()
    twin = copy.deepcopy(part)
    assert torch.equal(twin(stage).logits, part(stage).logits)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.equal(twin(stage).logits, part(stage).logits)
    twin.load_state_dict(part.state_dict())
    assert torch.equal(twin(stage).logits, part(stage).logits)


def test_section_has_the_networks_dtype():
    net, x = made("cnn_tiny")
    part = section(
        made("cnn_tiny")[0].to(net.double().fc if False else torch.float64),
        "stem",
        None,
        size_of(x),
    )
    assert {parameter.dtype for parameter in part.parameters()} == {torch.float64}


def test_making_a_section_leaves_no_trace():
    net, x = made("wrn_16_1")
    net.net.bn1.eval()
    before = copy.deepcopy(net.state_dict())
    section(net, 0, 1, size_of(x))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.net.training
    assert not net.net.bn1.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_reinitialised():
    net, _ = made("resnet8")
    state = torch.random.get_rng_state()
    first, second, third = (reinitialised(net, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.net.fc.weight, second.net.fc.weight)
    for other in (third, net):
        assert not torch.equal(first.net.fc.weight, other.net.fc.weight)
        assert not torch.equal(first.net.conv1.weight, other.net.conv1.weight)


def test_module_that_cannot_be_drawn_anew_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(SettingError, match="'Scale' in it cannot"):
        reinitialised(FeatureNet(nn.Sequential(nn.Linear(2, 2), Scale())), 0)


def test_section_of_a_restricted_network():
    whole, x = made("cnn_tiny")
    net = Restricted(whole.eval(), torch.tensor([4, 1]))
    out = net(x, ALL)
    assert torch.equal(section(net, 0, None, size_of(x))(out.stages[0]).logits, out.logits)
    assert torch.equal(section(net, 0, 1, size_of(x))(out.stages[0]).stages[0], out.stages[1])


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet18"])
@pytest.mark.parametrize(
    ("after", "upto", "message"),
    [
        (9, None, r"section\.after: 9 .*-\d\.\.\d"),
        (-9, None, r"section\.after: -9 "),
        ("end", None, r"section\.after: 'end' .*'stem'"),
        (None, 9, r"section\.upto: 9 .*stages"),
        (1, 1, r"section\.upto: 1 .*behind stage 1"),
        (2, 0, r"section\.upto: 0 "),
    ],
)
def test_wrong_cuts_are_one_line(name, after, upto, message):
    net, x = made(name)
    with pytest.raises(SettingError, match=message) as caught:
        section(net, after, upto, size_of(x))
    assert "\n" not in str(caught.value)


class Skipping(nn.Module):
    """The head uses the first stage again."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 4), (4, 8)))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x)
        return self.fc(torch.cat([maps[1].mean((2, 3)), x.mean((2, 3))], 1))


def test_networks_that_cannot_be_cut_say_why():
    x = torch.randn(2, 3, 32, 32)
    net = FeatureNet(Skipping())
    out = net(x, ALL)
    assert torch.equal(section(net, 0, None, (3, 32, 32))(out.stages[0]).logits, out.logits)
    with pytest.raises(SettingError, match=r"'Skipping' .*computed before it again") as caught:
        section(net, 1, None, (3, 32, 32))
    assert "\n" not in str(caught.value)
    assert section(net, None, 1, (3, 32, 32))(x).stages[0].shape == (2, 8, 4, 4)

    class Own(nn.Module):
        def taps(self, x: Tensor) -> Outputs:
            return Outputs(logits=x)

    with pytest.raises(SettingError, match=r"'Own' \(it cannot be cut\).*taps"):
        section(FeatureNet(Own()), None, None, (3, 4, 4))
