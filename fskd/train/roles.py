"""Further networks that methods ask for: peers, fresh sections, shared sections, averages."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from fskd.methods.words import Role
from fskd.models.sections import section
from fskd.models.taps import FeatureNet


class Roles(NamedTuple):
    """Networks by name.

    Attributes:
        own: Those with parameters of their own, which are saved.
        shared: Those whose parameters are another network's.
    """

    own: dict[str, nn.Module]
    shared: dict[str, nn.Module]


def make_roles(
    roles: Mapping[str, Role],
    students: Sequence[FeatureNet],
    teacher: nn.Module | None,
    size: tuple[int, ...],
    fresh: Callable[[FeatureNet, str], FeatureNet],
) -> Roles:
    """The networks of all roles.

    Args:
        roles: What is asked for.
        students: The student and its peers, which are roles, too.
        teacher: The teacher, or None.
        size: Shape of one image, (C, H, W).
        fresh: Makes a network like one, with parameters drawn anew, for the role of a name.

    Raises:
        SettingError: If a network cannot be divided as asked, or not be made anew.
    """
    own: dict[str, nn.Module] = {}
    shared: dict[str, nn.Module] = {}
    peers = iter(students[1:])
    for name, role in roles.items():
        whole = role.after is None and role.upto is None
        net = students[0] if role.of == "student" else teacher
        if not isinstance(net, FeatureNet):
            raise ValueError(f"role {name}: there is no {role.of} that is one network")
        if role.peer:
            own[name] = next(peers)
        elif role.weights == "ema":
            own[name] = copy.deepcopy(net).eval().requires_grad_(False)
        elif role.weights == "copy":
            own[name] = copy.deepcopy(net).requires_grad_(True)
        elif role.weights == "shared":
            shared[name] = net if whole else section(net, role.after, role.upto, size)
        else:
            made = fresh(net, name)
            own[name] = made if whole else section(made, role.after, role.upto, size)
    return Roles(own, shared)
