"""Tables for reading, made from the view's tables: what HTML, Markdown and LaTeX have in common."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fskd.results.matching import CELL
from fskd.results.view import MARKS, Setup, View, better_is_lower, marks, measure_of, usual

TIE_RULE = "Bold: best mean of the column; means that print alike are equal, and all are bold."


class Cell(NamedTuple):
    """Text of one cell, its letters (see ``view.MARKS``), a remark in small print, and weight."""

    text: str
    marks: str = ""
    small: str = ""
    bold: bool = False


class Grid(NamedTuple):
    """One table.

    Attributes:
        name: Of its files and its place in the page.
        title: What and where.
        head: Names of columns.
        rows: Cells; the first of a row names it.
        notes: Sentences that belong below.
        arms: The arm of every row.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: list[list[Cell]]
    notes: list[str]
    arms: list[str]


def grids(view: View) -> Iterator[tuple[str, Grid]]:
    """(section, table) for all setups."""
    makers = {
        "curve": result_grid, "paired": paired_grid, "equivalence": equivalence_grid,
        "area": area_grid, "cost": cost_grid,
    }  # fmt: skip
    for section, make in makers.items():
        for setup in view.setups:
            if not setup.of(getattr(view, section)).empty:
                yield section, make(view, setup)
    if len(view.aggregate) and view.aggregate["tasks"].max() > 1:
        yield "aggregate", aggregate_grid(view)


def result_grid(view: View, setup: Setup) -> Grid:
    """Mean ± standard deviation over seeds: arms down, numbers of examples across."""
    rows, about = setup.of(view.curve), measure_of(view.measure)
    sizes = sorted(set(rows["n_train"]))
    n = usual(rows["n"])
    known = {(row["arm"], row["n_train"]): row for _, row in rows.iterrows()}
    printed = {cell: f"{row['mean'] * about.scale:.{about.digits}f}" for cell, row in known.items()}
    best = {size: _best(view, [v for (_, s), v in printed.items() if s == size]) for size in sizes}
    arms = [arm for arm in view.arms if any((arm, size) in known for size in sizes)]
    table = []
    for arm in arms:
        cells = [Cell(arm)]
        for size in sizes:
            row = known.get((arm, size))
            if row is None:
                cells.append(Cell("-"))
                continue
            std = "" if row["n"] == 1 else f" ± {row['std'] * about.scale:.{about.digits}f}"
            letters = "" if arm == view.baseline else marks(row) if view.baseline else ""
            remark = "" if row["n"] == n else f"n={row['n']}"
            value = printed[arm, size]
            cells.append(Cell(value + std, letters, remark, float(value) == best[size]))
        table.append(cells)
    seeds = f"n = {n} {'seed' if n == 1 else 'seeds'} unless a cell says otherwise"
    notes = [f"Mean ± standard deviation over seeds; {seeds}.", TIE_RULE, *_legend(table)]
    head = ("arm", *(f"{size:,}" for size in sizes))
    title = f"{about.label.capitalize()} by number of training examples: {setup.title}"
    return Grid(f"results-{setup.number}", title, head, table, notes, arms)


def _best(view: View, texts: Sequence[str]) -> float:
    return (min if better_is_lower(view.measure) else max)(map(float, texts))


def _legend(rows: Sequence[Sequence[Cell]]) -> list[str]:
    used = [letter for letter in MARKS if any(letter in cell.marks for row in rows for cell in row)]
    text = "; ".join(f"{letter}: {MARKS[letter][1]}" for letter in used)
    return [f"Marks: {text}."] if used else []


def paired_grid(view: View, setup: Setup) -> Grid:
    """Differences from the baseline over matched runs."""
    about, rows = measure_of(view.measure), _ordered(view, setup.of(view.paired))
    curve = view.curve.set_index(CELL)
    table, refused = [], []
    for _, row in rows.iterrows():
        letters = marks(curve.loc[tuple(row[CELL])], "urqx")
        shown = _difference(row, about.scale, about.digits)
        cells = [Cell(row["arm"]), Cell(f"{row['n_train']:,}"), Cell(shown[0], letters)]
        cells += [Cell(text) for text in (shown[1], str(row["n"]), *_p_values(row))]
        table.append(cells)
        if row["refused"]:
            refused.append(f"{row['arm']} at {row['n_train']:,}: {row['refused']}")
    name = view.baseline
    notes = [
        f"{about.name.capitalize()} minus that of {name} in runs with the same seed and split,"
        " with the 95 % interval of the mean (Student's t).",
        "p: two-sided sign-flip test; least: the smallest p that n pairs can give; Holm: p adjusted"
        " for all comparisons of this report.",
        *([f"Pairs left out, because their splits differ: {'; '.join(refused)}."] * bool(refused)),
        *_legend(table),
    ]
    unit = f", {about.step}" if about.step else ""
    head = ("arm", "examples", f"difference{unit}", "95 % interval", "n", "p", "least", "Holm")
    title = f"Paired differences from {name}: {setup.title}"
    return Grid(f"paired-{setup.number}", title, head, table, notes, rows["arm"].tolist())


def _difference(row: pd.Series, scale: float, digits: int) -> tuple[str, str]:
    if row["n"] == 0:
        return "no pair", "-"
    mean = f"{row['mean'] * scale:+.{digits}f}"
    if not np.isfinite(row["low"]):
        return mean, "-"
    return mean, f"[{row['low'] * scale:+.{digits}f}, {row['high'] * scale:+.{digits}f}]"


def _p_values(row: pd.Series) -> list[str]:
    values = (row["p"], row["smallest_p"], row["p_holm"])
    return ["-" if pd.isna(p) else f"{p:.3g}" for p in values]


def equivalence_grid(view: View, setup: Setup) -> Grid:
    """Examples that the baseline needs for what an arm reaches."""
    rows, table = _ordered(view, setup.of(view.equivalence)), []
    for _, row in rows.iterrows():
        ratio = "-" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f}"
        bounds = [needed_text(row, part) for part in ("low", "high")]
        interval = "-" if pd.isna(row["low"]) else f"[{bounds[0]}, {bounds[1]}]"
        texts = (row["arm"], f"{row['n_train']:,}", needed_text(row, "needed"), interval, ratio)
        table.append([Cell(text) for text in (*texts, str(row["n"]))])
    name = view.baseline
    notes = [
        f"Needed: training examples with which {name} reaches what the arm reaches, read off its"
        " mean curve (monotone, linear in log n). > and <: beyond the sizes that were run, where"
        " nothing is extrapolated.",
        "95 % percentile bootstrap over n seeds, too narrow for a handful of them.",
    ]
    head = ("arm", "examples", f"{name} needs", "95 % interval", "ratio", "n")
    title = f"Data-equivalence to {name}: {setup.title}"
    return Grid(f"equivalence-{setup.number}", title, head, table, notes, rows["arm"].tolist())


def needed_text(row: pd.Series, part: str) -> str:
    """A number of examples with its mark."""
    return f"{row[f'{part}_mark']} {row[part]:,.0f}".strip()


def area_grid(view: View, setup: Setup) -> Grid:
    """Mean over log n of every arm with two or more sizes."""
    about, rows, table = measure_of(view.measure), _ordered(view, setup.of(view.area)), []
    for _, row in rows.iterrows():
        std = "" if row["n"] == 1 else f" ± {row['std'] * about.scale:.{about.digits}f}"
        sizes = f"{row['n_min']:,} to {row['n_max']:,} ({row['sizes']})"
        texts = [row["arm"], sizes, f"{row['mean'] * about.scale:.{about.digits}f}{std}"]
        known = not pd.isna(row["difference"])
        error = "" if pd.isna(row["error"]) else f" ± {row['error'] * about.scale:.{about.digits}f}"
        change = f"{row['difference'] * about.scale:+.{about.digits}f}{error}" if known else "-"
        counts = [str(row["n"]), str(int(row["pairs"])) if known else "-"]
        table.append([Cell(text) for text in (*texts, counts[0], change, counts[1])])
    notes = [
        "Area under the measure over log n, divided by the range: a mean over sizes that counts"
        " every doubling alike. Over the seeds that have all sizes.",
        "Mean ± standard deviation over n seeds; difference ± standard error over the pairs. Rows"
        " over different sizes must not be compared.",
    ]
    head = ("arm", "sizes", f"mean {about.label}", "n", f"minus {view.baseline}", "pairs")
    title = f"Mean over all sizes: {setup.title}"
    return Grid(f"area-{setup.number}", title, head, table, notes, rows["arm"].tolist())


def cost_grid(view: View, setup: Setup) -> Grid:
    """What the runs cost."""
    rows, table = _ordered(view, setup.of(view.cost)), []
    for _, row in rows.iterrows():
        counts = [_count(row[c]) for c in ("steps", "student_rows", "teacher_queries")]
        seconds = "-" if pd.isna(row["train_seconds"]) else f"{row['train_seconds']:,.1f}"
        place = ", ".join(filter(None, (row["device"], row["precision"])))
        texts = (row["arm"], f"{row['n_train']:,}", str(row["runs"]), *counts, seconds, place)
        table.append([Cell(text) for text in texts])
    notes = [
        "Means over runs. Seconds are those of training the student, without its teacher and"
        " without measuring; those of different devices or busy machines cannot be compared."
    ]
    head = (
        "arm", "examples", "runs", "updates", "student rows", "teacher queries", "seconds", "on",
    )  # fmt: skip
    return Grid(
        f"cost-{setup.number}", f"Costs: {setup.title}", head, table, notes, list(rows["arm"])
    )


def _count(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:,.0f}"


def aggregate_grid(view: View) -> Grid:
    """Arms over all tasks and sizes."""
    about, rows, table = measure_of(view.measure), _ordered(view, view.aggregate), []
    for _, row in rows.iterrows():
        iqm = _bounds(row, "iqm", about.scale, about.digits)
        theirs = f"{row['baseline_iqm'] * about.scale:.{about.digits}f}"
        texts = (row["arm"], str(row["tasks"]), iqm, theirs, _bounds(row, "improves", 1, 2))
        table.append([Cell(text) for text in texts])
    name = view.baseline
    notes = [
        f"Over all data sets, pairs of networks and sizes (tasks) that an arm shares with {name};"
        " rows with different numbers of tasks cover different ones.",
        f"Better: chance that a run of the arm is better than one of {name}, mean over tasks. 95 %"
        " percentile bootstrap over runs, too narrow for a handful of seeds.",
    ]
    head = (
        "arm", "tasks", f"interquartile mean of {about.label}", f"of {name}", f"better than {name}",
    )  # fmt: skip
    return Grid("aggregate", "Over all tasks and sizes", head, table, notes, list(rows["arm"]))


def _bounds(row: pd.Series, name: str, scale: float, digits: int) -> str:
    value, low, high = (row[f"{name}{end}"] * scale for end in ("", "_low", "_high"))
    if not np.isfinite(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _ordered(view: View, rows: pd.DataFrame) -> pd.DataFrame:
    """Arms in the order of the view, sizes rising."""
    place = rows["arm"].map({arm: i for i, arm in enumerate(view.arms)})
    sizes = rows.get("n_train", 0)
    return rows.assign(_place=place, _size=sizes).sort_values(["_place", "_size"])
