"""The panels of a report, each drawn from one of the view's tables and from nothing else."""

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fskd.results.canvas import (
    RC,
    Label,
    Panel,
    draw_arm,
    draw_bars,
    label_ends,
    number_points,
    panel_axes,
    references,
    set_ticks,
    size_axis,
)
from fskd.results.matching import CELL
from fskd.results.style import MUTED
from fskd.results.view import CALIBRATION, FIDELITY, Setup, View, marks, measure_of, usual

COSTS = {
    "student_rows": "student rows",
    "teacher_queries": "teacher queries",
    "train_seconds": "seconds of training",
}


def panels(view: View) -> Iterator[tuple[str, Panel]]:
    """(section, panel) of all figures for which there are data."""
    sections = {
        "curve": lambda setup: [curve_panel(view, setup)],
        "paired": lambda setup: [paired_panel(view, setup)],
        "equivalence": lambda setup: [equivalence_panel(view, setup)],
        "cost": lambda setup: [
            cost_panel(view, setup, cost)
            for cost in COSTS
            if setup.of(view.cost)[cost].dropna().nunique() > 1
        ],
        "calibration": lambda setup: _measure_panels(view, setup, CALIBRATION),
        "fidelity": lambda setup: _measure_panels(view, setup, FIDELITY),
    }
    for section, draw in sections.items():
        for setup in view.setups:
            if section not in ("paired", "equivalence") or _drawable(view, setup, section):
                with mpl.rc_context(RC):
                    drawn = draw(setup)
                for panel in drawn:
                    yield section, panel


def _measure_panels(view: View, setup: Setup, measures: Sequence[str]) -> list[Panel]:
    known = [m for m in measures if m in view.others and not setup.of(view.others[m]).empty]
    return [measure_panel(view, setup, measure) for measure in known]


def _drawable(view: View, setup: Setup, section: str) -> bool:
    """Whether there is something to see; one size of the baseline tells of no other number."""
    rows = setup.of(getattr(view, section))
    if section == "paired":
        return bool((rows["n"] > 0).any())
    own = setup.of(view.curve)
    return len(rows) > 0 and own.loc[own["arm"] == view.baseline, "n_train"].nunique() > 1


def curve_panel(view: View, setup: Setup) -> Panel:
    """The measure against the number of examples, with the teacher and the baseline on all data."""
    return measure_panel(view, setup, view.measure)


def measure_panel(view: View, setup: Setup, measure: str) -> Panel:
    """Any measure against the number of examples: means, and intervals over seeds as bands."""
    curve = view.curve if measure == view.measure else view.others[measure]
    rows, about = setup.of(curve), measure_of(measure)
    scaled = rows.assign(
        x=rows["n_train"].astype(float), hollow=_hollow(rows),
        **{name: rows[name] * about.scale for name in ("mean", "low", "high")},
    )  # fmt: skip
    axes = _axes(setup, scaled, _named(view, scaled))
    size_axis(axes, scaled["x"].tolist())
    _arms(view, axes, scaled)
    axes.set_ylabel(about.label)
    if measure == "top1":
        _references(view, setup, axes, about.scale)
    axes.margins(y=0.08)
    _label(view, axes, scaled)
    text = f"{about.label} against training examples on {setup.title}"
    return Panel(f"{measure}-{setup.number}", text, axes.figure)  # type: ignore[arg-type]


def paired_panel(view: View, setup: Setup) -> Panel:
    """Differences from the baseline over matched runs, with intervals."""
    about, rows = measure_of(view.measure), setup.of(view.paired)
    rows = rows[rows["n"] > 0].sort_values(["arm", "n_train"])
    scaled = rows.assign(
        x=rows["n_train"].astype(float), hollow=_hollow_pairs(view, rows),
        **{name: rows[name] * about.scale for name in ("mean", "low", "high")},
    )  # fmt: skip
    axes = _axes(setup, scaled, _named(view, scaled), "matched runs")
    size_axis(axes, scaled["x"].tolist())
    axes.axhline(0, color=view.styles[view.baseline].colour, linewidth=1.2, zorder=2).set_gid(
        "ref~0"
    )
    _arms(view, axes, scaled, bars=True)
    unit = f", {about.step}" if about.step else ""
    axes.set_ylabel(f"{about.name} minus {view.baseline}{unit}"[:46], parse_math=False)
    axes.margins(y=0.08)
    zero = Label(view.baseline, axes.get_xlim()[1], 0.0, view.styles[view.baseline])
    _label(view, axes, scaled, zero)
    text = f"difference from {view.baseline} against training examples on {setup.title}"
    return Panel(f"paired-{setup.number}", text, axes.figure)  # type: ignore[arg-type]


def equivalence_panel(view: View, setup: Setup) -> Panel:
    """Examples that the baseline needs for what an arm reaches; arrows where it never does."""
    rows = setup.of(view.equivalence).sort_values(["arm", "n_train"])
    scaled = rows.assign(
        x=rows["n_train"].astype(float), mean=rows["needed"], hollow=rows["needed_mark"] != ""
    )
    axes = _axes(setup, scaled, _named(view, scaled), "seeds")
    sizes = setup.of(view.curve)["n_train"].astype(float)
    size_axis(axes, sizes.tolist())
    axes.set_yscale("log")
    axes.set_ylim(sizes.min() / 1.25, sizes.max() * 1.25)
    set_ticks(axes, "y", [t for t in sorted(set(sizes)) if t in axes.get_xticks()])
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, zorder=1)[0].set_gid("ref~same")
    for arm, mine, shift in _shifted(view, scaled):
        style = view.styles[arm]
        draw_arm(axes, mine.assign(low=np.nan, high=np.nan), style, shift)
        known = mine["low"].notna() & mine["high"].notna()
        x = mine["x"].to_numpy(float) * shift
        draw_bars(axes, x, mine["low"].to_numpy(), mine["high"].to_numpy(), style, known.to_numpy())
        for mark, arrow, up in ((">", "^", 9), ("<", "v", -9)):
            for at, value in mine.loc[mine["needed_mark"] == mark, ["x", "mean"]].to_numpy():
                axes.annotate(
                    "↑" if arrow == "^" else "↓", (at * shift, value), (0, up),
                    textcoords="offset points", ha="center", va="center", color=style.colour,
                ).set_gid(f"arm{style.number}~{arrow}{at:.0f}")  # fmt: skip
    axes.set_ylabel(f"examples {view.baseline} needs"[:46], parse_math=False)
    _label(view, axes, scaled)
    text = f"examples that {view.baseline} needs for what each arm reaches on {setup.title}"
    return Panel(f"equivalence-{setup.number}", text, axes.figure)  # type: ignore[arg-type]


def cost_panel(view: View, setup: Setup, cost: str) -> Panel:
    """The measure against what a run cost; the points of an arm are its sizes, joined in order."""
    about = measure_of(view.measure)
    both = setup.of(view.curve).merge(
        setup.of(view.cost)[[*CELL, cost]], on=CELL, suffixes=("_", "")
    )
    both = both[both[cost].notna()]
    scaled = both.assign(
        x=both[cost].astype(float), hollow=_hollow(both), mean=both["mean"] * about.scale,
        low=np.nan, high=np.nan,
    )  # fmt: skip
    axes = _axes(setup, scaled, _named(view, scaled))
    _cost_axis(axes, scaled["x"])
    for arm, mine, _ in _shifted(view, scaled):
        draw_arm(axes, mine, view.styles[arm])
    axes.set_xlabel(f"{COSTS[cost]} of a run")
    axes.set_ylabel(about.label)
    axes.margins(y=0.08)
    _label(view, axes, scaled, joined=False)
    text = f"{about.label} against {COSTS[cost]} of a run on {setup.title}"
    return Panel(f"cost-{cost.split('_')[-1]}-{setup.number}", text, axes.figure)  # type: ignore[arg-type]


def _axes(setup: Setup, rows: pd.DataFrame, labels: list[str], what: str = "seeds") -> Axes:
    n = usual(rows["n"])
    some = what.removesuffix("s") if n == 1 else what
    rest = "" if (rows["n"] == n).all() else " except where written"
    return panel_axes(
        setup.names[0], f"{setup.networks}  ·  n = {n} {some} per point{rest}", labels
    )


def _named(view: View, rows: pd.DataFrame) -> list[str]:
    """Labels of the arms, in the order of the view."""
    return [_text(view, rows, arm) for arm in view.arms if (rows["arm"] == arm).any()]


def _text(view: View, rows: pd.DataFrame, arm: str) -> str:
    """The arm's name, and the letters of unequal budgets that any of its points has."""
    if not view.baseline or arm == view.baseline:
        return arm
    mine = view.curve.merge(rows.loc[rows["arm"] == arm, CELL], on=CELL)
    letters = sorted({letter for _, row in mine.iterrows() for letter in marks(row, "urq")})
    return f"{arm} [{''.join(sorted(letters, key='urq'.index))}]" if letters else arm


def _hollow(rows: pd.DataFrame) -> pd.Series:
    return rows["unequal_steps"] | rows["unequal_student_rows"]


def _hollow_pairs(view: View, rows: pd.DataFrame) -> list[bool]:
    curve = view.curve.assign(hollow=_hollow(view.curve)).set_index(CELL)["hollow"]
    return [bool(curve[cell]) for cell in rows[CELL].itertuples(index=False, name=None)]


def _shifted(view: View, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, float]]:
    """Each arm's rows; arms are moved apart by up to 4 % of the axis, so that bars do not hide."""
    arms = [arm for arm in view.arms if (rows["arm"] == arm).any()]
    low, high = np.log(rows["n_train"].astype(float).agg(["min", "max"]))
    # A single size leaves room for more, and its arms would all be in one place.
    width = 0.05 * (high - low) if high > low else 0.2
    step = np.exp(width / max(len(arms) - 1, 1))
    for i, arm in enumerate(arms):
        yield arm, rows[rows["arm"] == arm], step ** (i - (len(arms) - 1) / 2)


def _arms(view: View, axes: Axes, rows: pd.DataFrame, bars: bool = False) -> None:
    seeds = usual(rows["n"])
    single = rows["n_train"].nunique() == 1
    for arm, mine, shift in _shifted(view, rows):
        style, moved = view.styles[arm], shift if bars or single else 1.0
        plain = mine.assign(low=np.nan, high=np.nan) if bars else mine
        draw_arm(axes, plain, style, moved)
        if bars:
            x, low, high = (mine[c].to_numpy(float) for c in ("x", "low", "high"))
            draw_bars(axes, x * moved, low, high, style, np.isfinite(low) & np.isfinite(high))
        number_points(axes, mine.assign(x=mine["x"] * moved), style, seeds)


def _label(view: View, axes: Axes, rows: pd.DataFrame, *more: Label, joined: bool = True) -> None:
    """Names the arms at their largest size; those of one size only by their markers."""
    last = {arm: rows[rows["arm"] == arm].iloc[-1] for arm in view.arms if arm in set(rows["arm"])}
    ends = [
        Label(_text(view, rows, arm), float(row["x"]), float(row["mean"]), view.styles[arm])
        for arm, row in last.items()
        if np.isfinite(row["mean"])
    ]
    label_ends(axes, [*ends, *more], joined and rows["n_train"].nunique() > 1)


def _references(view: View, setup: Setup, axes: Axes, scale: float) -> None:
    lines = []
    if np.isfinite(setup.teacher_top1):
        lines.append((setup.teacher_top1 * scale, "teacher", "dashed"))
    if np.isfinite(setup.full):
        lines.append((setup.full * scale, f"{view.baseline} on all data", "dotted"))
    references(axes, lines)


def _cost_axis(axes: Axes, values: pd.Series) -> None:
    """Logarithmic; a cost of nothing has a place of its own at the left."""
    positive = values[values > 0]
    low, high = float(positive.min()), float(positive.max())
    ticks = _round_numbers(low, high)
    if (values == 0).any():
        axes.set_xscale("symlog", linthresh=low, linscale=0.4)
        axes.set_xlim(-low / 3, high * 1.3)
        ticks = [0, *(t for t in ticks if t >= low)]
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
    set_ticks(axes, "x", ticks)


def _round_numbers(low: float, high: float) -> list[float]:
    """Two to six round numbers from about ``low`` to about ``high``; the ends if there are none."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [low, high]
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), np.arange(10, 100) / 10):
        ticks = [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e * 1.1]
        ticks = [tick for tick in ticks if tick <= 1.1 * high]
        if len(ticks) > 6:
            return found if len(found) > 2 else ticks[:: len(ticks) // 4]
        found = ticks if len(ticks) > 1 else found
    return found
