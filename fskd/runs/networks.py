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
from fskd.seeding import derive
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
    try:
        with torch.no_grad(), modes_kept(net):
            shape = tuple(net.eval()(probe).logits.shape)
    except SettingError as error:
        raise SettingError(setting, error.value, error.accepted) from None
    except Exception as error:  # somebody else's network may fail in any way
        size = "x".join(map(str, data.train.size))
        accepted = f"a network that takes {size} images ({first_line(error)})"
        raise SettingError(setting, type(net.net).__name__, accepted) from None
    if shape != (2, data.train.num_classes):
        found = f"a network with output {tuple(shape[1:])}"
        raise SettingError(setting, found, f"{data.train.num_classes} classes")
    return notes
