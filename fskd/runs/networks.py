"""Networks of a run from names, each initialised from a stream of its own, and a look at them."""

from collections.abc import Sequence

import torch
from torch import nn

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.modes import modes_kept
from fskd.models.taps import FeatureNet
from fskd.models.trace import first_line
from fskd.models.usable import make_usable
from fskd.seeding import derive, torch_generator
from fskd.types import DataSplits


def seeded_network(
    name: str,
    data: DataSplits,
    setting: str,
    seed: int,
    *purpose: str | int,
    taps: Sequence[str] = (),
) -> FeatureNet:
    """A network initialised from a stream of its own; other streams do not move."""
    channels = data.train.size[0]
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init", *purpose))
        try:
            net = build(name, data.train.num_classes, channels)
        except SettingError as error:
            raise SettingError(setting, error.value, error.accepted) from None
    return feature_net(net, taps, setting.partition(".")[0])


def feature_net(
    net: nn.Module, taps: Sequence[str], setting: str, logits: str | int | None = None
) -> FeatureNet:
    """A network with taps by name; SettingError with the setting's name if it has no such."""
    try:
        return FeatureNet(net, taps, logits)
    except SettingError as error:
        raise SettingError(f"{setting}.taps", error.value, error.accepted) from None


def check_network(
    net: FeatureNet, data: DataSplits, setting: str, trains: bool | None = None
) -> list[str]:
    """Makes sure that a network takes the images and has one output per class.

    Args:
        net: The network; its parameters are cast to float32.
        data: The images.
        setting: Where it was given, ``student`` or ``teacher``.
        trains: Whether it will be trained; if None, students are.

    Returns:
        What a user should know of it, one line each.

    Raises:
        SettingError: If it does not fit the data or is of a kind that cannot be used.
    """
    notes = make_usable(net.net, setting, trains)
    first = next(net.parameters(), None)
    if first is None:
        raise SettingError(setting, type(net.net).__name__, "a network with parameters")
    probe = torch.zeros(2, *data.train.size, device=first.device, dtype=first.dtype)
    trained = setting == "student" if trains is None else trains
    try:
        with modes_kept(net):
            flows = not trained or net.eval()(probe).logits.requires_grad
            # Last without a graph, which a network that keeps its features would hold.
            with torch.no_grad():
                logits = net.eval()(probe).logits
    except SettingError as error:
        raise SettingError(setting, error.value, error.accepted) from None
    except Exception as error:  # somebody else's network may fail in any way
        size = "x".join(map(str, data.train.size))
        accepted = f"a network that takes {size} images ({first_line(error)})"
        raise SettingError(setting, type(net.net).__name__, accepted) from None
    shape = tuple(logits.shape)
    if shape != (2, data.train.num_classes):
        found = f"a network with output {tuple(shape[1:])}"
        raise SettingError(setting, found, f"{data.train.num_classes} classes")
    if not flows:
        found = f"{type(net.net).__name__} (its {_short(logits)} outputs have no gradient)"
        raise SettingError(setting, found, "outputs that depend on its parameters")
    return notes


def gives_probabilities(net: FeatureNet, data: DataSplits) -> bool:
    """Whether a network ends in a softmax, as its outputs for noise tell."""
    from fskd.teachers.doubts import are_probabilities  # not before it is needed

    first = next(net.parameters())
    noise = torch.randn(8, *data.train.size, generator=torch_generator(0, "noise"))
    with torch.no_grad(), modes_kept(net):
        return are_probabilities(net.eval()(noise.to(first)).logits.cpu())


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
