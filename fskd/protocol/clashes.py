"""Which settings the sections of a protocol set, and where two sections disagree about one."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from fskd.errors import SettingError
from fskd.raw import EXCLUSIVE, NAMED


def leaves(layer: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all settings in a layer; a part by name sets ``<part>.name``.

    Example:
        >>> sorted(leaves({"method": "kd", "data": {"fraction": 0.1, "sampler": {"name": "x"}}}))
        ['data.fraction', 'data.sampler.name', 'method.name']
    """
    found: set[str] = set()
    for name, value in layer.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= leaves(value, f"{path}.")
        elif name in NAMED or path in ("data", "teacher") or path.endswith(".teacher"):
            found.add(f"{path}.name")
        else:
            found.add(path)
    return found


def refuse_clashes(sections: Mapping[str, Iterable[str]], free: frozenset[str]) -> None:
    """SettingError if two sections set the same setting, or two that exclude each other.

    Args:
        sections: What each section sets.
        free: Sections that may set the same, because it is known which of them wins.
    """
    for (one, ours), (other, theirs) in combinations(sections.items(), 2):
        if one in free and other in free:
            continue
        for mine in sorted(ours):
            for yours in sorted(theirs):
                if _clash(mine, yours):
                    what = mine if mine == yours else f"{mine} beside {yours}"
                    raise SettingError(other, what, f"a setting that {one} does not set")


def _clash(one: str, other: str) -> bool:
    if one == other or one.startswith(f"{other}.") or other.startswith(f"{one}."):
        return True
    (section, _, a), (place, _, b) = one.rpartition("."), other.rpartition(".")
    return section == place and any({a, b} <= {*rivals} for rivals in EXCLUSIVE)
