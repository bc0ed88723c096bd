"""How arms look in figures: alike wherever the same arms are shown, and readable without colour.

Colours are those of Okabe and Ito (Color Universal Design, 2008), without black, which is the ink,
and yellow, which vanishes on paper; every colour has a marker of its own.
"""

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


class Style(NamedTuple):
    """Look of one arm: colour, marker, dashes of its line, and its place among the arms."""

    colour: str
    marker: str
    dash: Any
    number: int


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """A look for every arm: short names first, so that variants come after what they vary.

    Example:
        >>> styles(["ours", "kd"])["kd"].colour
        '#6e7681'
    """
    names = sorted(set(arms), key=lambda name: (len(name), name))
    return {name: _style(number) for number, name in enumerate(names)}


def _style(number: int) -> Style:
    cycle, colour = divmod(number, len(COLOURS))
    marker = MARKERS[(colour + 3 * cycle) % len(MARKERS)]
    return Style(COLOURS[colour], marker, DASHES[cycle % len(DASHES)], number)
