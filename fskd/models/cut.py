"""Students cut from their teacher: its first blocks, and its channels with the largest filters."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.calls import record
from fskd.models.channels import Channels
from fskd.models.taps import FeatureNet

ALIKE = ("stride", "padding", "dilation", "kernel_size", "eps")  # besides widths
STAGES = frozenset({"stages"})
Kept = dict[str, Tensor]


class _UnlikeError(Exception):
    """Why a student is no part of a teacher."""


class _Plan(NamedTuple):
    """Which of the student's channels belong together.

    Attributes:
        layers: Of each weight, the groups of its leading dimensions.
        sizes: Of each group, the channels of student and teacher.
    """

    layers: dict[str, tuple[int, ...]]
    sizes: dict[int, tuple[int, int]]


def check_cut(student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
    """SettingError unless the student is a part of the teacher; their weights play no role.

    Args:
        student: Of the same family, at most as deep in every stage and as wide in every layer.
        teacher: One network.
        size: (C, H, W) of the images.
    """
    try:
        _plan(student, _one(teacher), size)
    except _UnlikeError as error:
        theirs = type(getattr(teacher, "net", teacher)).__name__
        given = f"'{type(student.net).__name__}' (no part of the teacher '{theirs}': {error})"
        accepted = (
            "a student with the teacher's layers, at most as wide and as deep, such as resnet20 for"
            " resnet56, wrn_16_2 for wrn_40_2, lenet5_half for lenet5, resnet8x4 for resnet32x4"
        )
        raise SettingError("student", given, accepted) from None


def kept_channels(student: FeatureNet, teacher: FeatureNet, size: tuple[int, int, int]) -> Kept:
    """Which of the teacher's channels the student has: positions, rising, by weight.

    Of each group of tied channels (those that are added up, and what reads them) the student has
    those with the largest L1 norms of the filters that write them, summed over these layers of the
    student (Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, arXiv 1608.08710, who
    let the shortcut's convolution alone decide in sums). Of equal ones, the first.

    Args:
        student: A part of the teacher; see ``check_cut``.
        teacher: With its weights.
        size: (C, H, W) of the images.

    Returns:
        The channels of dimension 0 of each weight, int64.
    """
    plan, state = _plan(student, teacher, size), teacher.net.state_dict()
    return {name: rows[0] for name, rows in _chosen(plan, state).items()}


def cut(student: FeatureNet, teacher: FeatureNet, size: tuple[int, int, int]) -> list[str]:
    """Gives a student the weights of the teacher's part that it is.

    Depth: of each run of blocks or layers the first ones are kept, the one that changes resolution
    or width among them, since it is the first. Width: see ``kept_channels``.

    Args:
        student: Changed in place, statistics of batch norms included.
        teacher: With its weights.
        size: (C, H, W) of the images.

    Returns:
        What was kept, a line each.

    Raises:
        SettingError: If the student is no part of the teacher.

    Example:
        >>> from fskd.models.catalog import build
        >>> small, large = (FeatureNet(build(name, 10, 1)) for name in ("cnn_tiny", "cnn_small"))
        >>> cut(small, large, (1, 8, 8))
        ['3 of 5 layers with filters', '56 of 192 channels in these']
    """
    check_cut(student, teacher, size)
    plan, state = _plan(student, teacher, size), teacher.net.state_dict()
    chosen = _chosen(plan, state)
    with torch.no_grad():
        for name, value in student.net.state_dict().items():
            source = state[name]
            for dim, rows in enumerate(chosen.get(name, ())):
                source = source.index_select(dim, rows.to(source.device))
            value.copy_(source)
    ours, theirs = (_filters(net.net) for net in (student, teacher))
    widths = [sum(len(net[name]) for name in ours) for net in (ours, theirs)]
    lines = [f"{len(ours)} of {len(theirs)} layers with filters"]
    return [*lines, f"{widths[0]} of {widths[1]} channels in these"]


def _filters(net: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def _one(teacher: nn.Module) -> FeatureNet:
    if not isinstance(teacher, FeatureNet):
        raise _UnlikeError("it is not one network")
    return teacher


def _plan(student: FeatureNet, teacher: FeatureNet, size: tuple[int, int, int]) -> _Plan:
    _check_structure(student.net, teacher.net)
    ours, theirs = (
        [shape[1:] for shape in net.tap_shapes(size, STAGES).stages] for net in (student, teacher)
    )
    if ours != theirs:
        raise _UnlikeError(f"its stages have {ours} pixels, the teacher's {theirs}")
    channels = Channels(student.net, record(student.net, size))
    small, large = student.net.state_dict(), teacher.net.state_dict()
    sizes: dict[int, tuple[int, int]] = {}
    for name, value in small.items():
        groups, shapes = channels.layers.get(name, ()), (value.shape, large[name].shape)
        if shapes[0][len(groups) :] != shapes[1][len(groups) :]:
            hint = f" behind {', '.join(channels.unknown)}" if channels.unknown else ""
            raise _UnlikeError(f"{name}{hint} is {_text(*shapes)}")
        for dim, group in enumerate(groups):
            pair = shapes[0][dim], shapes[1][dim]
            free = group not in channels.fixed
            if pair[0] > pair[1] or (pair[0] < pair[1] and not free):
                raise _UnlikeError(f"{name} is {_text(*shapes)}")
            if sizes.setdefault(group, pair) != pair:
                other = sizes[group][1]
                raise _UnlikeError(f"{name} has {pair[1]} channels in the teacher, not {other}")
    return _Plan(channels.layers, sizes)


def _check_structure(student: nn.Module, teacher: nn.Module) -> None:
    others = dict(teacher.named_modules())
    for name, module in student.named_modules():
        other = others.get(name)
        if other is None:
            raise _UnlikeError(f"the teacher has no '{name}'")
        title = f"'{name}'" if name else "the whole"
        if type(module) is not type(other):
            kinds = [type(one).__name__ for one in (module, other)]
            raise _UnlikeError(f"{title} is a {kinds[0]}, the teacher's a {kinds[1]}")
        ours, theirs = ({n for n, _ in one.named_children()} for one in (module, other))
        container = isinstance(module, nn.Sequential | nn.ModuleList) and bool(ours)
        if theirs - ours and not container:
            more = ", ".join(sorted(theirs - ours))
            raise _UnlikeError(f"the teacher's {title} has {more}, the student's not")
        for setting in ALIKE:
            pair = [getattr(one, setting, None) for one in (module, other)]
            if pair[0] != pair[1]:
                raise _UnlikeError(f"{title} has {setting} {pair[0]}, the teacher's {pair[1]}")


def _chosen(plan: _Plan, teacher: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Positions in the teacher along the leading dimensions of each weight."""
    scores: dict[int, Tensor] = {}
    for name, groups in plan.layers.items():
        if len(groups) == 2:
            norms = teacher[name].double().abs().flatten(1).sum(1).cpu()
            scores[groups[0]] = scores.get(groups[0], torch.zeros_like(norms)) + norms
    rows = {group: torch.arange(pair[1]) for group, pair in plan.sizes.items()}
    for group, (n, _) in plan.sizes.items():
        if n < len(rows[group]):
            best = scores[group].argsort(descending=True, stable=True)[:n]
            rows[group] = best.sort().values
    return {name: tuple(rows[g] for g in groups) for name, groups in plan.layers.items()}


def _text(ours: torch.Size, theirs: torch.Size) -> str:
    return f"{'x'.join(map(str, ours))}, the teacher's {'x'.join(map(str, theirs))}"
