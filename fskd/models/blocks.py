"""Stacks of residual blocks: which blocks could be missing, and a network without one of them."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fskd.models.taps import FeatureNet

SHORTCUTS = ("downsample", "convShortcut", "shortcut")
Missing = Mapping[str, Sequence[int]]


def stacks(net: nn.Module) -> dict[str, nn.Sequential]:
    """Runs of residual blocks by their path, such as the stages of a ResNet.

    A residual block is a module with convolutions ``conv1``, ``conv2``, ... and a shortcut
    (``downsample``, ``convShortcut`` or ``shortcut``) that may be None.

    Example:
        >>> from fskd.models.catalog import build
        >>> {path: len(stack) for path, stack in stacks(build("resnet14", 10)).items()}
        {'layer1': 2, 'layer2': 2, 'layer3': 2}
    """
    return {
        path: module
        for path, module in net.named_modules()
        if isinstance(module, nn.Sequential) and len(module) and all(map(_is_block, module))
    }


def spare(stack: nn.Sequential) -> list[int]:
    """Positions of the blocks whose output is as large as their input, all of one shape.

    Any of them may be missing, or stand in the place of another.
    """
    free = [i for i, block in enumerate(stack) if _shortcut(block) is None]
    usual = _shapes(stack[free[-1]]) if free else {}
    return [i for i in free if _shapes(stack[i]) == usual]


def surplus(student: nn.Module, teacher: nn.Module) -> dict[str, int] | None:
    """How many blocks of each stack the teacher has more; None if it has not just more blocks.

    Example:
        >>> from fskd.models.catalog import build
        >>> surplus(build("resnet8", 10), build("resnet20", 10))
        {'layer1': 2, 'layer2': 2, 'layer3': 2}
        >>> surplus(build("resnet8", 10), build("vgg8", 10)) is None
        True
    """
    ours, theirs = stacks(student), stacks(teacher)
    if ours.keys() != theirs.keys():
        return None
    more = {path: len(theirs[path]) - len(ours[path]) for path in ours}
    free = {path: spare(theirs[path]) for path in ours}
    if not any(more.values()) or any(not 0 <= more[p] <= len(free[p]) for p in ours):
        return None
    left = kept_state(teacher, {path: free[path][: more[path]] for path in ours})
    sizes = {name: value.shape for name, value in left.items()}
    found = {name: value.shape for name, value in student.state_dict().items()}
    return more if sizes == found else None


def kept_state(net: nn.Module, missing: Missing) -> dict[str, Tensor]:
    """The state of a network without some blocks, under the names of one that never had them.

    Args:
        net: The network.
        missing: Positions of the blocks by the path of their stack.
    """
    found = {}
    for name, value in net.state_dict().items():
        path = next((p for p in missing if name.startswith(f"{p}.")), None)
        if path is not None:
            index, _, rest = name.removeprefix(f"{path}.").partition(".")
            if int(index) in missing[path]:
                continue
            before = sum(i < int(index) for i in missing[path])
            name = f"{path}.{int(index) - before}.{rest}"
        found[name] = value
    return found


def with_gap(net: FeatureNet, path: str, index: int) -> tuple[FeatureNet, list[nn.Parameter]]:
    """A copy of a network without one block, in eval mode, with 1x1 adaptors around the gap.

    The adaptors are square, without bias and begin as identities. They stand behind the
    convolutions that write to the stack before the gap (the last one of each block, and the
    shortcut's or, without one, the last one before the stack), and before those that read behind
    it (the first one of each block, and of the next stack's first block and its shortcut).

    Args:
        net: The network, which is left alone.
        path: The stack.
        index: Position of the block.

    Returns:
        The copy, all of which is frozen but the adaptors, and the adaptors' weights.
    """
    twin = copy.deepcopy(net).requires_grad_(False)
    found = stacks(twin.net)
    writers, readers = _around(twin.net, path, index)
    weights = [_adapt(twin.net, name, behind=True) for name in writers]
    weights += [_adapt(twin.net, name, behind=False) for name in readers]
    del found[path][index]
    return twin.eval(), weights


def _around(net: nn.Module, path: str, index: int) -> tuple[list[str], list[str]]:
    """Paths of the convolutions that write before the gap, and that read behind it."""
    found = stacks(net)
    stack, order = found[path], list(found)
    blocks = {i: f"{path}.{i}" for i in range(len(stack))}
    begins = _shortcut_conv(net, blocks[0]) if index > 0 else None
    writers = [begins or _last_before(net, path)]
    writers += [_convs(net, blocks[i])[-1] for i in range(index)]
    readers = [_convs(net, blocks[i])[0] for i in range(index + 1, len(stack))]
    for after in order[order.index(path) + 1 :][:1]:
        first = f"{after}.0"
        readers += [_convs(net, first)[0], *filter(None, [_shortcut_conv(net, first)])]
    return writers, readers


def _adapt(net: nn.Module, name: str, behind: bool) -> nn.Parameter:
    conv = cast(nn.Conv2d, net.get_submodule(name))
    channels = conv.out_channels if behind else conv.in_channels
    adaptor = nn.Conv2d(channels, channels, 1, bias=False)
    weight = nn.Parameter(torch.eye(channels)[..., None, None].to(conv.weight))
    adaptor.weight = weight
    parent, _, own = name.rpartition(".")
    parts = (conv, adaptor) if behind else (adaptor, conv)
    setattr(net.get_submodule(parent), own, nn.Sequential(*parts))
    return weight


def _is_block(module: nn.Module) -> bool:
    known = any(hasattr(module, name) for name in SHORTCUTS)
    return known and len(_own_convs(module)) > 1


def _own_convs(block: nn.Module) -> list[str]:
    parts = block.named_children()
    named = {n for n, m in parts if isinstance(m, nn.Conv2d) and re.fullmatch(r"conv\d+", n)}
    return sorted(named, key=lambda name: int(name[4:]))


def _convs(net: nn.Module, block: str) -> list[str]:
    return [f"{block}.{name}" for name in _own_convs(net.get_submodule(block))]


def _shortcut(block: nn.Module) -> nn.Module | None:
    found = next((getattr(block, name) for name in SHORTCUTS if hasattr(block, name)), None)
    plain = found is None or isinstance(found, nn.Identity)
    empty = isinstance(found, nn.Sequential) and not len(found)
    return None if plain or empty else cast(nn.Module, found)


def _shortcut_conv(net: nn.Module, block: str) -> str | None:
    """Path of the convolution in a block's shortcut, if it has one."""
    shortcut = _shortcut(net.get_submodule(block))
    inside = net.get_submodule(block).named_modules()
    of_it = set() if shortcut is None else set(shortcut.modules())
    convs = (name for name, m in inside if m in of_it and isinstance(m, nn.Conv2d))
    return next((f"{block}.{name}" for name in convs), None)


def _last_before(net: nn.Module, path: str) -> str:
    """Path of the last convolution before a stack."""
    last = ""
    for name, module in net.named_modules():
        if name == path:
            break
        last = name if isinstance(module, nn.Conv2d) else last
    return last


def _shapes(block: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in block.state_dict().items()}
