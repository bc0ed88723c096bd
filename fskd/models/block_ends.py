"""Where the blocks of a network end: a map before its activation, and the layer that writes it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fskd.models.calls import Call
from fskd.models.channels import SUMS


class BlockEnd(NamedTuple):
    """The end of a residual block, or of a convolution that is in none.

    Attributes:
        out: Number of the call that gives the map before its activation: the sum, or the norm.
        tail: Number of the call that gives the branch alone: what the sum adds to the shortcut.
        conv: Path of the last convolution of the branch.
        norm: Path of the batch normalisation behind it; None if there is none.
    """

    out: int
    tail: int
    conv: str
    norm: str | None


def block_ends(net: nn.Module, calls: Sequence[Call]) -> list[BlockEnd]:
    """The ends of all blocks in order of execution.

    Ends need a convolution without groups; a batch normalisation behind it has scale, shift and
    running statistics. Others are left out, and so are convolutions inside of a sum's branches.

    Args:
        net: The network.
        calls: What it computes; see ``fskd.models.calls.record``.

    Example:
        >>> from fskd.models.calls import record
        >>> from fskd.models.catalog import build
        >>> net = build("resnet8", 10, 1)
        >>> [end.conv for end in block_ends(net, record(net, (1, 8, 8)))]
        ['conv1', 'layer1.0.conv2', 'layer2.0.conv2', 'layer3.0.conv2']
    """
    before: list[frozenset[int]] = []
    for number, call in enumerate(calls):
        before.append(frozenset({number}).union(*(before[i] for i in call.inputs if i >= 0)))
    inside: set[int] = set()
    found: list[BlockEnd | None] = []
    for number, call in enumerate(calls):
        pair = [i for i in call.inputs if i >= 0]
        if call.name in SUMS and len(pair) == 2:
            left, right = before[pair[0]], before[pair[1]]
            inside |= left ^ right
            longer = _convs(calls, left - right) > _convs(calls, right - left)
            tail = pair[0] if longer else pair[1]
            found.append(_end(net, calls, number, tail))
    for number, call in enumerate(calls):
        if call.name == "conv2d" and number not in inside:
            users = [i for i, other in enumerate(calls) if number in other.inputs]
            normed = len(users) == 1 and calls[users[0]].name == "batch_norm"
            out = users[0] if normed else number
            found.append(_end(net, calls, out, out))
    return sorted(end for end in found if end is not None)


def _end(net: nn.Module, calls: Sequence[Call], out: int, tail: int) -> BlockEnd | None:
    norm, last = None, calls[tail]
    if last.name == "batch_norm" and last.inputs[0] >= 0:
        norm, last = _path(last), calls[last.inputs[0]]
        module = net.get_submodule(norm)
        if not (
            isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats
        ):
            return None
    conv = net.get_submodule(_path(last)) if last.name == "conv2d" else None
    full = isinstance(conv, nn.Conv2d) and conv.groups == 1
    return BlockEnd(out, tail, _path(last), norm) if full else None


def _path(call: Call) -> str:
    return call.weights[0].rpartition(".")[0]


def _convs(calls: Sequence[Call], numbers: frozenset[int]) -> int:
    return sum(calls[i].name == "conv2d" for i in numbers)
