"""Figures show the tables and nothing else: points, intervals, marks, and the look of arms."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Annotation, Text

from fskd.results.canvas import Panel, apart, png_bytes, svg_text
from fskd.results.loading import load
from fskd.results.panels import panels
from fskd.results.style import COLOURS, DASHES, MARKERS, ON_DARK, styles
from fskd.results.view import View, make_view

sys.path.insert(0, str(Path(__file__).parent))
from made import made, write
from studies import ARMS, study


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    root = write(tmp_path_factory.mktemp("study"), *study())
    names = {result.key: ARMS[int(result.key[1])] for result in study()}
    return make_view(load(root, names=names, cache=False))


@pytest.fixture(scope="module")
def drawn(view: View) -> dict[str, Panel]:
    return {panel.name: panel for _, panel in panels(view)}


def axes_of(panel: Panel) -> Axes:
    (axes,) = panel.figure.axes
    return axes


def points(view: View, panel: Panel, arm: str) -> list[tuple[float, float]]:
    """Every marker of an arm, full or hollow."""
    begin = f"arm{view.styles[arm].number}~"
    found = []
    for line in axes_of(panel).lines:
        if line.get_gid() in (f"{begin}points", f"{begin}hollow"):
            found += list(zip(*(map(float, data) for data in line.get_data()), strict=True))
    return sorted(found)


def artist(view: View, panel: Panel, arm: str, kind: str) -> object:
    gid = f"arm{view.styles[arm].number}~{kind}"
    found = [a for a in axes_of(panel).get_children() if a.get_gid() == gid]
    return found[0] if found else None


def rows_of(table: pd.DataFrame, arm: str, number: int = 1) -> pd.DataFrame:
    data = ["digits", "letters"][number - 1]
    return table[(table["dataset"] == data) & (table["arm"] == arm)].sort_values("n_train")


def test_all_panels(drawn: dict[str, Panel]) -> None:
    kinds = (
        "top1", "paired", "equivalence", "cost-rows", "cost-queries", "cost-seconds", "ece", "nll",
        "agreement", "tv_test", "tv_train", "tv_paths",
    )  # fmt: skip
    assert set(drawn) == {f"{kind}-{number}" for kind in kinds for number in (1, 2)}


@pytest.mark.parametrize("number", [1, 2])
def test_curve_points_are_the_tables(view: View, drawn: dict[str, Panel], number: int) -> None:
    for arm in view.arms:
        rows = rows_of(view.curve, arm, number)
        expected = list(zip(rows["n_train"], 100 * rows["mean"], strict=True))
        assert points(view, drawn[f"top1-{number}"], arm) == [pytest.approx(p) for p in expected]


@pytest.mark.parametrize("measure", ["ece", "nll", "tv_test", "tv_paths", "agreement"])
def test_other_measures(view: View, drawn: dict[str, Panel], measure: str) -> None:
    scale = 100 if measure == "agreement" else 1
    table = view.others[measure]
    for arm in set(table["arm"]):
        rows = rows_of(table, arm)
        expected = list(zip(rows["n_train"], scale * rows["mean"], strict=True))
        assert points(view, drawn[f"{measure}-1"], arm) == [pytest.approx(p) for p in expected]


def test_band_is_the_interval(view: View, drawn: dict[str, Panel]) -> None:
    rows = rows_of(view.curve, "kdplus")
    band = artist(view, drawn["top1-1"], "kdplus", "band")
    vertices = band.get_paths()[0].vertices  # type: ignore[attr-defined]
    for _, row in rows.iterrows():
        at = vertices[np.isclose(vertices[:, 0], row["n_train"]), 1]
        assert at.min() == pytest.approx(100 * row["low"])
        assert at.max() == pytest.approx(100 * row["high"])


def test_single_seed_has_no_band(view: View, drawn: dict[str, Panel]) -> None:
    """Neither at the point nor towards it; the interval beyond it stands alone as a bar."""
    band = artist(view, drawn["top1-1"], "at", "band")
    covered = np.concatenate([p.vertices[:, 0] for p in band.get_paths()])  # type: ignore[attr-defined]
    assert covered.min() == 100
    bars = artist(view, drawn["top1-1"], "at", "bars")
    assert isinstance(bars, LineCollection)
    assert [segment[0][0] for segment in bars.get_segments()] == [10]


def test_unequal_training_is_hollow_and_named(view: View, drawn: dict[str, Panel]) -> None:
    hollow = artist(view, drawn["top1-1"], "at", "hollow")
    assert list(hollow.get_xdata()) == [1000]  # type: ignore[attr-defined]
    assert artist(view, drawn["top1-1"], "kdplus", "hollow") is None
    texts = [t.get_text() for t in axes_of(drawn["top1-1"]).texts]
    assert {"ce [q]", "kd", "kdplus [q]", "at [ur]", "rkd", "ours"} <= set(texts)
    for name in ("paired-1", "equivalence-1", "cost-seconds-1", "nll-1"):
        assert {"kdplus [q]", "at [ur]"} <= {t.get_text() for t in axes_of(drawn[name]).texts}


def test_numbers_of_seeds(view: View, drawn: dict[str, Panel]) -> None:
    """In the subtitle, and beside every point that differs."""
    (_, note) = (text.get_text() for text in drawn["top1-1"].figure.texts)
    assert "n = 5 seeds per point except where written" in note
    texts = [t for t in axes_of(drawn["top1-1"]).texts if t.get_text().startswith("n=")]
    assert [(t.get_text(), t.xy[0]) for t in texts if isinstance(t, Annotation)] == [("n=1", 50)]


def test_teacher_and_full_data_lines(view: View, drawn: dict[str, Panel]) -> None:
    full = rows_of(view.curve, "kd").iloc[-1]
    assert full["n_train"] == 1000
    lines = {
        line.get_gid(): line.get_ydata()[0]  # type: ignore[index]
        for line in axes_of(drawn["top1-1"]).lines
        if str(line.get_gid()).startswith("ref~")
    }
    teacher, whole = lines.values()
    assert (teacher, whole) == (pytest.approx(90), pytest.approx(100 * full["mean"]))
    named = f"teacher 90.0 (dashed), kd on all data {whole:.1f} (dotted)"
    assert named in [text.get_text() for text in axes_of(drawn["top1-1"]).texts]


def test_paired_points_and_bars(view: View, drawn: dict[str, Panel]) -> None:
    for arm in ("ce", "kdplus", "rkd"):
        rows = rows_of(view.paired, arm)
        found = points(view, drawn["paired-1"], arm)
        assert [y for _, y in found] == pytest.approx(list(100 * rows["mean"]))
        assert [x for x, _ in found] == pytest.approx(list(rows["n_train"]), rel=0.2)
        bars = artist(view, drawn["paired-1"], arm, "bars")
        ends = [(s[0][1], s[1][1]) for s in bars.get_segments()]  # type: ignore[attr-defined]
        known = rows[rows["low"].notna()]
        expected = list(zip(100 * known["low"], 100 * known["high"], strict=True))
        assert ends == [pytest.approx(e) for e in expected]
    assert points(view, drawn["paired-1"], "kd") == []


def test_equivalence_points(view: View, drawn: dict[str, Panel]) -> None:
    """Bounds are hollow and have an arrow."""
    for arm in ("ce", "kdplus"):
        rows = rows_of(view.equivalence, arm)
        found = points(view, drawn["equivalence-1"], arm)
        assert sorted(y for _, y in found) == pytest.approx(sorted(rows["needed"]))
        hollow = artist(view, drawn["equivalence-1"], arm, "hollow")
        marked = int(rows["needed_mark"].ne("").sum())
        assert marked > 0
        assert len(hollow.get_xdata()) == marked  # type: ignore[attr-defined]
        begin = f"arm{view.styles[arm].number}~"
        kinds = tuple(f"{begin}{arrow}" for arrow in "^v")
        texts = axes_of(drawn["equivalence-1"]).texts
        arrows = [text for text in texts if str(text.get_gid()).startswith(kinds)]
        assert len(arrows) == marked


@pytest.mark.parametrize(
    ("panel", "column"), [("queries", "teacher_queries"), ("seconds", "train_seconds")]
)
def test_cost_points(view: View, drawn: dict[str, Panel], panel: str, column: str) -> None:
    for arm in view.arms:
        rows = rows_of(view.cost, arm)
        expected = sorted(zip(rows[column], 100 * rows["mean"], strict=True))
        found = points(view, drawn[f"cost-{panel}-1"], arm)
        assert found == [pytest.approx(p) for p in expected]


def test_costs_that_are_equal_have_no_panel(tmp_path: Path) -> None:
    root = write(tmp_path, *(made(m, n, s, 0.5 + s / 100) for m in ("kd", "at") for n in (20, 50)
                             for s in (0, 1)))  # fmt: skip
    found = {panel.name for _, panel in panels(make_view(load(root, cache=False)))}
    assert not any(name.startswith("cost") for name in found)


def test_labels_do_not_overlap(view: View, drawn: dict[str, Panel]) -> None:
    for name, panel in drawn.items():
        png_bytes(panel.figure, 100)  # lays everything out
        boxes = [
            Text.get_window_extent(text)  # of an annotation: without its arrow
            for text in axes_of(panel).texts
            if str(text.get_gid()).endswith("~label")
        ]
        assert len(boxes) >= 5
        for i, box in enumerate(boxes):
            assert box.x1 <= panel.figure.bbox.x1, name
            for other in boxes[i + 1 :]:
                assert box.y0 >= other.y1 - 1.5 or other.y0 >= box.y1 - 1.5, name


def test_one_size_and_one_seed(tmp_path: Path) -> None:
    """Arms stand side by side; there is no interval and no equivalence."""
    root = write(tmp_path, made("ce", top1=0.4), made("kd", top1=0.5))
    view = make_view(load(root, cache=False))
    found = {panel.name: panel for _, panel in panels(view)}
    assert "equivalence-1" not in found
    (ce,), (kd,) = (points(view, found["top1-1"], arm) for arm in ("ce", "kd"))
    assert (ce[1], kd[1]) == (pytest.approx(40), pytest.approx(50))
    assert ce[0] < 50 < kd[0] or kd[0] < 50 < ce[0]
    assert artist(view, found["top1-1"], "kd", "bars") is None
    assert artist(view, found["top1-1"], "kd", "band") is None


def test_same_bytes(view: View, drawn: dict[str, Panel]) -> None:
    again = {panel.name: panel for _, panel in panels(view)}
    for name in ("top1-1", "paired-2", "equivalence-1", "cost-queries-2"):
        assert svg_text(again[name].figure) == svg_text(drawn[name].figure)
        assert png_bytes(again[name].figure, 60) == png_bytes(drawn[name].figure, 60)


def test_text_stays_text(drawn: dict[str, Panel]) -> None:
    svg = svg_text(drawn["top1-1"].figure)
    assert "training examples</text>" in svg
    assert "top-1 accuracy, %</text>" in svg


# --- styles and places --------------------------------------------------------------------------


def test_the_same_arms_look_alike_in_whatever_order_they_come() -> None:
    names = [f"arm {i}" for i in range(len(COLOURS) * len(DASHES))]
    found = styles(names)
    assert found == styles([*reversed(names), *names])
    assert len({style[:3] for style in found.values()}) == len(names)


def test_colours_differ_while_there_are_enough() -> None:
    names = ["kd", *(f"variant {i}" for i in range(len(COLOURS) - 1))]
    found = styles(names)
    assert len({style.colour for style in found.values()}) == len(COLOURS)
    assert len({style.marker for style in found.values()}) >= len(MARKERS) - 2
    many = styles([f"arm {i}" for i in range(40)])
    assert sorted(style.number for style in many.values()) == list(range(40))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
def test_contrast_on_dark(colour: str) -> None:
    """At least 4.5 to 1 against the dark page (WCAG 2, text)."""
    paper, ink = luminance(ON_DARK["#ffffff"]), luminance(ON_DARK[colour])
    assert (ink + 0.05) / (paper + 0.05) > 4.5


def test_spread_keeps_order_and_room() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted, heights = np.sort(rng.uniform(0, 3, 8)), rng.uniform(0.1, 0.5, 8)
        placed = np.array(apart(list(wanted), list(heights), 3.0))
        low, high = placed - heights / 2, placed + heights / 2
        assert (low[1:] >= high[:-1] - 1e-9).all()
        if heights.sum() <= 3:
            assert low[0] >= -1e-9
            assert high[-1] <= 3 + 1e-9
    assert apart([0.5, 2.0], [0.2, 0.2], 3.0) == [0.5, 2.0]
