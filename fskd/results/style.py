"""How methods look in figures: the same in every report, and readable without colour.

Colours are those of Okabe and Ito (Color Universal Design, 2008), without black, which is the ink,
and yellow, which vanishes on paper; every colour has a marker of its own.
"""

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#e6e8eb", "#ffffff"
COLOURS = ("#6e7681", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
ON_DARK = {
    INK: "#e6edf3", MUTED: "#9aa4af", GRID: "#30363d", PAPER: "#0f1419",
    "#6e7681": "#a3adb8", "#0072b2": "#4aa8e0", "#d55e00": "#f08340", "#009e73": "#2cc296",
    "#cc79a7": "#dd93bb", "#56b4e9": "#8fd0f5", "#e69f00": "#f0b93a",
}  # fmt: skip
"""Colour on a light page -> colour on a dark one."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)))
# In the order of slots; an arm of one of these names looks alike in all reports.
KNOWN = (
    "ce", "kd", "kdplus", "at", "rkd", "fitnet", "mixup", "crd", "sskd", "fsp", "dml", "tfkd_reg",
)  # fmt: skip
SLOTS = len(COLOURS) * len(DASHES)


class Style(NamedTuple):
    """Look of one arm: colour, marker, dashes of its line, and its place among the arms."""

    colour: str
    marker: str
    dash: Any
    number: int


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """A look for every arm, by its name.

    Known methods have fixed looks. Another name has the look that its checksum picks; where two of
    a report would share a colour, the later in the alphabet takes the next free one.

    Example:
        >>> styles(["kd", "ours"])["kd"].colour
        '#0072b2'
    """
    names = sorted(set(arms), key=_place)
    taken: list[int] = []
    for name in names:
        taken.append(_slot(name, taken))
    return {name: _style(slot, i) for i, (name, slot) in enumerate(zip(names, taken, strict=True))}


def _place(name: str) -> tuple[int, str]:
    return (KNOWN.index(name) if name in KNOWN else len(KNOWN), name)


def _slot(name: str, taken: list[int]) -> int:
    if name in KNOWN:
        return KNOWN.index(name)
    first = zlib.crc32(name.encode()) % SLOTS
    order = [(first + step) % SLOTS for step in range(SLOTS)]
    colours = {slot % len(COLOURS) for slot in taken}
    fresh = [slot for slot in order if slot % len(COLOURS) not in colours]
    unused = [slot for slot in order if slot not in taken]
    return (fresh or unused or order)[0]


def _style(slot: int, index: int) -> Style:
    cycle, colour = divmod(slot, len(COLOURS))
    marker = MARKERS[(colour + 3 * cycle) % len(MARKERS)]
    return Style(COLOURS[colour], marker, DASHES[cycle % len(DASHES)], index)
