"""Drawing one panel: axes, lines with bands, labels at the ends of lines, and files.

Text in SVG stays text (``svg.fonttype: none``): it can be searched, copied, read aloud and take the
page's font and colour, and files are small. Sizes are measured with DejaVu Sans, which is wider
than the sans-serifs that browsers have, so text fits everywhere; the PNG shows it as measured.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fskd.results.style import GRID, INK, MUTED, ON_DARK, PAPER, Style

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 5.0, 3.35, 0.7, 0.55, 0.6  # inches
FONT, SMALL = 9.5, 8.5
LINE = 0.155  # height of a line of small text, inches
RC: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT,
    "svg.fonttype": "none", "svg.hashsalt": "fskd", "axes.edgecolor": MUTED, "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED, "axes.linewidth": 0.8,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.facecolor": "none",
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.unicode_minus": False,
}  # fmt: skip


class Panel(NamedTuple):
    """One figure: name of its files, what it shows in a sentence, and the drawing."""

    name: str
    about: str
    figure: Figure


class Label(NamedTuple):
    """Text beside the last point of a line."""

    text: str
    x: float
    y: float
    style: Style


def panel_axes(title: str, note: str, labels: Sequence[str]) -> Axes:
    """Axes of a fresh figure, with room at the right for the longest label.

    Args:
        title: Above the axes, in bold.
        note: Below the title, smaller.
        labels: Texts to come beside the lines.
    """
    longest = max((len(line) for text in labels for line in wrapped(text).split("\n")), default=0)
    right = 0.32 + 0.072 * longest
    figure = Figure(figsize=(WIDTH, HEIGHT))
    box = [LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + right) / WIDTH, 1 - (BOTTOM + TOP) / HEIGHT]
    axes = figure.add_axes((box[0], box[1], box[2], box[3]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, labelsize=SMALL)
    place: dict[str, Any] = {"x": 0.12 / WIDTH, "ha": "left", "va": "top"}
    figure.text(y=1 - 0.1 / HEIGHT, s=title, weight="bold", parse_math=False, **place)
    figure.text(y=1 - 0.31 / HEIGHT, s=note, color=MUTED, size=SMALL, parse_math=False, **place)
    return axes


def wrapped(text: str) -> str:
    """At most three lines of 18 letters, the rest left out.

    Example:
        >>> wrapped("kdplus (method.temperature=2.0)").split(chr(10))
        ['kdplus (method.tem', 'perature=2.0)']
    """
    return "\n".join(textwrap.wrap(text, 18, max_lines=3, placeholder="…"))


def size_axis(axes: Axes, sizes: Sequence[float], label: str = "training examples") -> None:
    """A logarithmic x axis with a tick at every size that was run, as far as they fit."""
    axes.set_xscale("log")
    low, high = min(sizes), max(sizes)
    pad = (high / low) ** 0.05 if high > low else 1.6
    axes.set_xlim(low / pad, high * pad)
    inches = axes.get_position().width * WIDTH / np.log(high * pad * pad / low)
    ticks: list[float] = []
    for size in sorted(set(sizes)):
        if not ticks or np.log(size / ticks[-1]) * inches > 0.09 * len(short(size)):
            ticks.append(size)
    set_ticks(axes, "x", ticks)
    axes.set_xlabel(label)


def set_ticks(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    """Exactly these ticks, as whole numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """A count in a few letters.

    Example:
        >>> [short(v) for v in (0, 60, 1198, 51200, 1536000, 2e9)]
        ['0', '60', '1,198', '51.2k', '1.54M', '2G']
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= max(size, 1e4):
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:.2g}"


def draw_arm(axes: Axes, rows: pd.DataFrame, style: Style, shift: float = 1.0) -> None:
    """A line with markers, a band between neighbouring intervals, a bar for an interval alone.

    Args:
        axes: Where.
        rows: Columns ``x``, ``mean``, ``low``, ``high`` (NaN without interval) and ``hollow``.
        style: Look of the arm.
        shift: Factor on x, for arms that would hide each other.
    """
    x, y = rows["x"].to_numpy(float) * shift, rows["mean"].to_numpy(float)
    low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
    gid = f"arm{style.number}~"
    (line,) = axes.plot(x, y, color=style.colour, linestyle=style.dash, linewidth=1.7, zorder=3)
    line.set_gid(f"{gid}line")
    banded = np.isfinite(low) & np.isfinite(high)
    together = banded & (np.r_[False, banded[:-1]] | np.r_[banded[1:], False])
    if together.any():
        band = axes.fill_between(
            x, low, high, where=together.tolist(), color=style.colour, alpha=0.13, linewidth=0
        )
        band.set_gid(f"{gid}band")
    draw_bars(axes, x, low, high, style, banded & ~together)
    for hollow in (False, True):
        chosen = rows["hollow"].to_numpy(bool) == hollow
        if chosen.any():
            face = PAPER if hollow else style.colour
            edge = style.colour if hollow else PAPER
            (dots,) = axes.plot(
                x[chosen], y[chosen], linestyle="none", marker=style.marker, markersize=6.5,
                markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.4 if hollow else 0.7,
                zorder=4, clip_on=False,
            )  # fmt: skip
            dots.set_gid(f"{gid}{'hollow' if hollow else 'points'}")


def draw_bars(axes: Axes, x: Any, low: Any, high: Any, style: Style, where: Any) -> None:
    """Upright bars from ``low`` to ``high``."""
    if where.any():
        bars = axes.vlines(
            x[where], low[where], high[where], colors=style.colour, linewidth=1.6, zorder=3
        )
        bars.set_gid(f"arm{style.number}~bars")


def number_points(axes: Axes, rows: pd.DataFrame, style: Style, usual: int) -> None:
    """Writes n beside the points that have another number of seeds than most."""
    for x, y, n in zip(rows["x"], rows["mean"], rows["n"], strict=True):
        if n != usual:
            text = axes.annotate(
                f"n={n}", (x, y), (0, 7), textcoords="offset points", ha="center",
                size=SMALL - 1.5, color=style.colour, zorder=6,
                bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            )  # fmt: skip
            text.set_gid(f"arm{style.number}~n{x:.0f}")
            if (box := text.get_bbox_patch()) is not None:
                box.set_gid(f"arm{style.number}~box{x:.0f}")


def references(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Horizontal lines over the whole width, all named above the highest, where no curve is.

    Args:
        axes: Where they go.
        lines: Value, name, and line style in a word that readers know.
    """
    for value, text, style in lines:
        line = axes.axhline(value, color=MUTED, linewidth=1, linestyle=style, zorder=1)
        line.set_gid(f"ref~{text}")
    if lines:
        axes.annotate(
            ", ".join(f"{text} {value:.1f} ({style})" for value, text, style in lines),
            (0, max(value for value, *_ in lines)), (3, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="bottom", size=SMALL - 0.5, color=MUTED,
            parse_math=False,
        )  # fmt: skip


def label_ends(axes: Axes, labels: Sequence[Label], joined: bool = True) -> None:
    """Texts at the right edge, moved apart, each joined to the end of its line or with its marker.

    Call it last: the limits of the axes must not change afterwards.
    """
    axes.autoscale_view()
    height = axes.get_position().height * HEIGHT
    inverse = axes.transAxes.inverted()
    heights = {
        label: float(inverse.transform(axes.transData.transform((label.x, label.y)))[1]) * height
        for label in labels
    }
    order = sorted(labels, key=lambda label: heights[label])
    texts = [wrapped(label.text) for label in order]
    lines = [LINE * (1 + text.count("\n")) for text in texts]
    for label, text, y in zip(
        order, texts, apart([heights[label] for label in order], lines, height), strict=True
    ):
        gid = f"arm{label.style.number}~"
        if not joined:
            (dot,) = axes.plot(
                [1.03], [y / height], marker=label.style.marker, markersize=5.5, clip_on=False,
                color=label.style.colour, transform=axes.transAxes, linestyle="none",
            )  # fmt: skip
            dot.set_gid(f"{gid}key")
        arrow = {
            "arrowstyle": "-", "color": label.style.colour, "linewidth": 0.7, "alpha": 0.55,
            "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5),
        } if joined else None  # fmt: skip
        made = axes.annotate(
            text, (label.x, label.y), (1.035 if joined else 1.06, y / height), xycoords="data",
            textcoords="axes fraction", va="center", ha="left", size=SMALL, annotation_clip=False,
            color=label.style.colour, weight="bold", parse_math=False, linespacing=1.1,
            arrowprops=arrow,
        )  # fmt: skip
        made.set_gid(f"{gid}label")
        if made.arrow_patch is not None:
            made.arrow_patch.set_gid(f"{gid}leader")


def apart(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Centres as near to the wanted ones as boxes of these heights allow, within [0, top].

    Args:
        wanted: Centres, ascending.
        heights: Of the boxes.
        top: Upper end; boxes that need more room than there is go beyond it.

    Example:
        >>> apart([0.5, 0.5], [0.25, 0.25], 1.0)
        [0.5, 0.75]
    """
    placed: list[float] = []
    end = 0.0
    for centre, height in zip(wanted, heights, strict=True):
        placed.append(max(centre, end + height / 2))
        end = placed[-1] + height / 2
    limit = max(top, sum(heights))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit - heights[i] / 2)
        limit = placed[i] - heights[i] / 2
    return placed


def svg_text(figure: Figure) -> str:
    """The figure as an SVG file; the same figure always gives the same text."""
    stream = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+\n", "\n", stream.getvalue())


def png_bytes(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def inline(svg: str, name: str, about: str) -> str:
    """An SVG file as part of a page: ids of its own, classes for arms, colours of the page.

    Args:
        svg: What ``svg_text`` gave.
        name: Becomes the id, and the beginning of all ids inside.
        about: Text for those who do not see it; must be escaped for HTML.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'<g id="arm(\d+)~[^"]*"', r'<g class="arm arm\1"', body)
    body = re.sub(r'<g id="ref~[^"]*"', '<g class="reference"', body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    for colour in ON_DARK:
        body = body.replace(colour, f"var(--c{colour[1:]})")
    body = body.replace("'DejaVu Sans', ", "")
    box = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg id="{name}" class="figure" role="img" aria-label="{about}" {box and box[0]}>'
    return head + body[body.index(">") + 1 :].rstrip()
