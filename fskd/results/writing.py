"""A report's files: ``index.html``, ``figures/``, ``tables/``, ``tables.md`` and ``tables.tex``."""

from pathlib import Path

from fskd.results.canvas import png_bytes, svg_text
from fskd.results.evidence import Evidence
from fskd.results.export import to_csv, to_latex, to_markdown
from fskd.results.grids import grids
from fskd.results.page import render
from fskd.results.panels import panels
from fskd.results.store import check_writable, replacing, write_text
from fskd.results.view import View, measure_of


def write_report(view: View, evidence: Evidence, folder: Path, title: str | None = None) -> Path:
    """Writes everything; the page comes last.

    Args:
        view: The tables.
        evidence: What the folder of runs holds.
        folder: Made if absent; files of an earlier report are replaced.
        title: Heading of the page; by default what is measured on which data sets.

    Returns:
        The page.
    """
    for place in (folder, folder / "figures", folder / "tables"):
        check_writable(place)
    drawn = []
    for section, panel in panels(view):
        svg = svg_text(panel.figure)
        write_text(folder / "figures" / f"{panel.name}.svg", svg)
        with replacing(folder / "figures" / f"{panel.name}.png") as temporary:
            temporary.write_bytes(png_bytes(panel.figure))
        drawn.append((section, panel, svg))
    tables = list(grids(view))
    for name, table in view.tables():
        write_text(folder / "tables" / f"{name}.csv", to_csv(table))
    write_text(folder / "tables" / "runs.csv", to_csv(view.table.drop(columns="path")))
    write_text(folder / "tables.md", to_markdown([grid for _, grid in tables]))
    write_text(folder / "tables.tex", to_latex([grid for _, grid in tables]))
    page = folder / "index.html"
    write_text(page, render(view, evidence, drawn, tables, title or _title(view)))
    return page


def _title(view: View) -> str:
    sets = list(dict.fromkeys(setup.names[0] for setup in view.setups))
    named = ", ".join(sets) if len(sets) < 4 else f"{len(sets)} data sets"
    name = measure_of(view.measure).name
    return f"{name[0].upper()}{name[1:]} with few examples: {named}"
