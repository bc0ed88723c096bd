"""Networks of a run from names, each initialised from a stream of its own, and a look at them."""

import torch

from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.seeding import derive
from fskd.types import DataSplits


def seeded_network(
    name: str, data: DataSplits, setting: str, seed: int, *purpose: str | int
) -> FeatureNet:
    """A network initialised from a stream of its own; other streams do not move."""
    channels = data.train.size[0]
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init", *purpose))
        try:
            net = FeatureNet(build(name, data.train.num_classes, channels))
        except SettingError as error:
            raise SettingError(setting, error.value, error.accepted) from None
    return net


def check_network(net: FeatureNet, data: DataSplits, setting: str) -> None:
    """SettingError unless the network takes the images and has one output per class."""
    training = net.training
    net.eval()
    first = next(net.parameters(), None)
    if first is None:
        raise SettingError(setting, type(net.net).__name__, "a network with parameters")
    probe = torch.zeros(2, *data.train.size, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad():
            shape = tuple(net(probe).logits.shape)
    except Exception as error:  # somebody else's network may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        size = "x".join(map(str, data.train.size))
        name = type(net.net).__name__
        raise SettingError(
            setting, name, f"a network that takes {size} images ({reason})"
        ) from None
    net.train(training)
    if shape != (2, data.train.num_classes):
        found = f"a network with output {tuple(shape[1:])}"
        raise SettingError(setting, found, f"{data.train.num_classes} classes")
