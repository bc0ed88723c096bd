"""The report as one HTML file: figures inside, no network, no scripts.

Arms are switched on and off by checkboxes and CSS alone (``:has``), so the page works wherever
scripts are off; a browser without ``:has`` shows everything.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from fskd.results.canvas import Panel, inline
from fskd.results.evidence import Evidence
from fskd.results.export import to_latex, to_markdown
from fskd.results.facts import facts
from fskd.results.grids import Grid
from fskd.results.style import ON_DARK, Style
from fskd.results.view import MARKS, View, measure_of
from fskd.results.wording import not_shown, shown

_MARKERS = {
    "o": "M6 1.6a4.4 4.4 0 1 0 .01 0z", "s": "M2 2h8v8h-8z", "D": "M6 .8l5.2 5.2-5.2 5.2-5.2-5.2z",
    "^": "M6 1.2l5 9.3h-10z", "v": "M6 10.8l5-9.3h-10z",
    "P": "M4.2 1h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    "X": "M3.2 1l2.8 2.8 2.8-2.8 2.2 2.2-2.8 2.8 2.8 2.8-2.2 2.2-2.8-2.8-2.8 2.8-2.2-2.2 2.8-2.8"
    "-2.8-2.8z",
}  # fmt: skip
"""Outlines of the markers in a box of 12 by 12."""


class Section(NamedTuple):
    """One part of the page.

    Attributes:
        name: Its anchor.
        title: Heading.
        text: How to read it.
        figures: Inline SVG.
        grids: Tables.
        closed: Whether the tables are folded away.
    """

    name: str
    title: str
    text: str
    figures: list[Markup]
    grids: list[Grid]
    closed: bool


def render(
    view: View,
    evidence: Evidence,
    svgs: Sequence[tuple[str, Panel, str]],
    grids: Sequence[tuple[str, Grid]],
    title: str,
) -> str:
    """The page.

    Args:
        view: The tables.
        evidence: What the folder holds.
        svgs: (section, panel, its SVG file) of all figures.
        grids: (section, table) of all tables.
        title: Heading of the page.
    """
    return _template().render(
        title=title,
        facts=facts(view.table),
        view=view,
        evidence=evidence,
        measure=measure_of(view.measure),
        shown=shown(view),
        not_shown=not_shown(view, evidence),
        sections=_sections(view, svgs, grids),
        marks={letter: text for letter, (_, text) in MARKS.items()},
        markers={arm: _marker(style) for arm, style in view.styles.items()},
        colours=[(name[1:], name, dark) for name, dark in ON_DARK.items()],
        latex=to_latex([grid for section, grid in grids if section in ("curve", "paired")]),
        markdown=to_markdown([grid for section, grid in grids if section in ("curve", "paired")]),
        students=int((view.table["role"] == "student").sum()),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fskd.results"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html.j2")


def _marker(style: Style) -> Markup:
    colour = f"var(--c{style.colour[1:]})"
    path = f'<path d="{_MARKERS[style.marker]}" fill="{colour}"/>'
    return Markup(f'<svg class="marker" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>')


def _sections(
    view: View, svgs: Sequence[tuple[str, Panel, str]], grids: Sequence[tuple[str, Grid]]
) -> list[Section]:
    found = []
    for name, (title, text) in _texts(view).items():
        figures = [
            # The SVG is matplotlib's, which escapes what it is given.
            Markup(inline(svg, panel.name, str(escape(panel.about))))
            for section, panel, svg in svgs
            if section == name
        ]
        tables = [grid for section, grid in grids if section == name]
        if figures or tables:
            found.append(Section(name, title, text, figures, tables, bool(figures)))
    return [s._replace(closed=s.closed and s.name != "curve") for s in found]


def _texts(view: View) -> Mapping[str, tuple[str, str]]:
    about, name = measure_of(view.measure), view.baseline
    heading = about.name[0].upper() + about.name[1:]
    return {
        "curve": (
            f"{heading} against number of examples",
            "Means over seeds; bands and bars are 95 % intervals of the mean (Student's t), and a"
            " single seed has none. Letters behind a name and hollow points mark unequal budgets.",
        ),
        "paired": (
            f"Paired differences from {name}",
            "Runs with the same seed share the examples and the student's first weights, so their"
            " difference varies less than either. Where an interval includes 0, the data do not"
            " tell the two apart.",
        ),
        "equivalence": (
            "Data-equivalence",
            f"How many examples {name} needs for what an arm reaches. Above the diagonal an arm"
            " saves data. Hollow points with arrows are bounds: nothing is extrapolated.",
        ),
        "area": ("Mean over all sizes", "One number for each curve."),
        "cost": (
            "Cost against accuracy",
            "What a run costs; the points of a line are its data sizes. A cost that is the same for"
            " all runs has no figure.",
        ),
        "calibration": (
            "Calibration",
            "Expected calibration error (15 bins) and negative log-likelihood on the test split;"
            " lower is better.",
        ),
        "fidelity": (
            "Fidelity to the teacher",
            "Share of test images on which student and teacher agree (higher is closer), and mean"
            " total variation between their predictions (lower is closer), on test points, training"
            " points, and points between training points.",
        ),
        "aggregate": ("Over all tasks", "Every data set, pair of networks and size is a task."),
    }  # fmt: skip
