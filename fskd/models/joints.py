"""Linear maps of channels behind a stage, merged into the convolutions that read its map."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fskd.models.modes import modes_kept
from fskd.models.sections import section
from fskd.models.taps import FeatureNet

STAGES = frozenset({"stages"})


def readers(net: FeatureNet, stage: int, size: tuple[int, ...]) -> list[nn.Conv2d]:
    """The convolutions of a network that are fed with the map of a stage itself.

    Args:
        net: The network.
        stage: Its stage, not the last one.
        size: (C, H, W) of the images.
    """
    part, x = _behind(net, stage, size)
    found: list[nn.Conv2d] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0] is x:
            found.append(cast(nn.Conv2d, module))

    convs = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_pre_hook(look) for conv in convs]
    try:
        _logits(part, x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def merge(convs: Iterable[nn.Conv2d], matrix: Tensor) -> None:
    """Makes convolutions give for x what they gave for the map ``matrix @ x``, exactly.

    As there is no bias, this holds at borders padded with zeros, too.

    Args:
        convs: Convolutions without groups.
        matrix: (C, C) over the channels of their input.
    """
    for conv in convs:
        conv.weight.copy_(torch.einsum("odhw,dc->ochw", conv.weight, matrix.to(conv.weight)))


def can_merge(net: FeatureNet, stage: int, size: tuple[int, ...]) -> bool:
    """Whether a linear map of channels behind a stage can be merged, as a probe tells.

    It can where only convolutions read the map: not behind a stage that is followed by a norm, an
    activation, a pooling or a shortcut without convolution.
    """
    twin = copy.deepcopy(net).double()
    convs = readers(twin, stage, size)
    if not convs or any(conv.groups > 1 for conv in convs):
        return False
    part, x = _behind(twin, stage, size)
    matrix = torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(0)).to(x)
    expected = _logits(part, F.conv2d(x, matrix[..., None, None]))
    merge(convs, matrix)
    return torch.allclose(_logits(part, x), expected, rtol=1e-6, atol=1e-9)


def _behind(net: FeatureNet, stage: int, size: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """What follows a stage, and a map for it."""
    shape = net.tap_shapes(size, STAGES).stages[stage]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    return section(net, after=stage, upto=None, size=size), x.to(next(net.parameters()))


@torch.no_grad()
def _logits(part: nn.Module, x: Tensor) -> Tensor:
    with modes_kept(part):
        return cast(Tensor, part.eval()(x).logits)
