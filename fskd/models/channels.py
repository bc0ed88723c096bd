"""Which channels of a network are the same ones: tied by sums, norms and the next layer's input."""

from collections.abc import Sequence
from itertools import count

from torch import nn

from fskd.models.calls import Call
from fskd.models.stages import ACTIVATION_FUNCTIONS

SUMS = ("add", "iadd", "add_")
# What gives its input's channels in their order.
KEEPS = ACTIVATION_FUNCTIONS | {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "flatten",
    "pad", "dropout", "contiguous", "clone",
}  # fmt: skip


class Channels:
    """Groups of channels that must be chosen together.

    Args:
        net: The network.
        calls: What it computes; see ``record``.

    Attributes:
        layers: Of each weight, the groups of its leading dimensions: (out, in) or (out,).
        fixed: Groups of the images and of the output, of which none can be left out.
        unknown: Calls whose channels cannot be followed, as a phrase each.
    """

    def __init__(self, net: nn.Module, calls: Sequence[Call]) -> None:
        self._above: list[int] = []
        images, found = self._new(), dict[int, int | None]()
        self._grouped = {
            f"{name}.weight"
            for name, module in net.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups > 1
        }
        self.unknown: list[str] = []
        layers: dict[str, tuple[int, ...]] = {}
        for number, call in zip(count(), calls, strict=False):
            given = [images if i < 0 else found[i] for i in call.inputs]
            known = [group for group in given if group is not None]
            found[number] = self._follow(call, known, layers) if len(known) == len(given) else None
        self.layers = {name: tuple(map(self.find, groups)) for name, groups in layers.items()}
        last = found[len(calls) - 1] if calls else None
        self.fixed = {self.find(group) for group in (images, last) if group is not None}

    def _follow(
        self, call: Call, given: list[int], layers: dict[str, tuple[int, ...]]
    ) -> int | None:
        if call.name in ("conv2d", "linear") and given and not self._grouped & {*call.weights}:
            out = self._new()
            for name in call.weights:
                layers[name] = (out, given[0]) if name.endswith("weight") else (out,)
            return out
        if call.name == "batch_norm" and given:
            layers.update(dict.fromkeys(call.weights, (given[0],)))
            return given[0]
        if call.name in SUMS and len(given) == 2:
            self._above[self.find(given[0])] = self.find(given[1])
            return given[0]
        if call.name in KEEPS and len(given) == 1:
            return given[0]
        if given:
            self.unknown.append(call.name)
        return None

    def _new(self) -> int:
        self._above.append(len(self._above))
        return len(self._above) - 1

    def find(self, group: int) -> int:
        """The number that all groups tied to this one have."""
        while self._above[group] != group:
            group = self._above[group]
        return group
