"""Tables for reading, recomputed from the runs; files that hold hostile names; sentences."""

import csv
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fskd.results.evidence import Evidence, gather
from fskd.results.export import markdown, tex, to_csv, to_latex, to_markdown
from fskd.results.facts import facts
from fskd.results.grids import Cell, Grid, grids
from fskd.results.store import Result
from fskd.results.view import View, make_view
from fskd.results.wording import not_shown, shown

sys.path.insert(0, str(Path(__file__).parent))
from made import made, write
from studies import ARMS, HOSTILE, SEEDS, SIZES, accuracy, write_study


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return gather(write_study(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def view(evidence: Evidence) -> View:
    return make_view(evidence.table)


@pytest.fixture(scope="module")
def found(view: View) -> dict[str, Grid]:
    return {grid.name: grid for _, grid in grids(view)}


@pytest.fixture
def viewed(tmp_path: Path) -> Callable[..., tuple[View, Evidence]]:
    def call(*results: Result) -> tuple[View, Evidence]:
        evidence = gather(write(tmp_path / str(len(list(tmp_path.iterdir()))), *results))
        return make_view(evidence.table), evidence

    return call


def column(arm: str, n: int, data: str = "digits") -> list[float]:
    return [accuracy(arm, data, n, seed) for seed in SEEDS]


def row_of(grid: Grid, *begin: str) -> list[Cell]:
    (row,) = [r for r in grid.rows if [c.text for c in r[: len(begin)]] == list(begin)]
    return row


# --- numbers ------------------------------------------------------------------------------------


def test_results_by_hand(found: dict[str, Grid]) -> None:
    grid = found["results-1"]
    assert grid.head == ("arm", "10", "50", "100", "250", "1,000")
    for arm in ARMS:
        row = row_of(grid, arm)
        for size, cell in zip(SIZES, row[1:], strict=True):
            values = 100 * np.array(column(arm, size))
            if (arm, size) == ("at", 50):
                assert (cell.text, cell.small) == (f"{values[0]:.2f}", "n=1")
            else:
                assert cell.text == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
                assert cell.small == ""


def test_best_is_bold_and_the_rule_is_stated(found: dict[str, Grid]) -> None:
    grid = found["results-1"]
    for place in range(1, 6):
        means = [float(row[place].text.split()[0]) for row in grid.rows]
        bold = [row[place].bold for row in grid.rows]
        assert bold == [mean == max(means) for mean in means]
    assert any("Bold" in note and "alike" in note for note in grid.notes)


def test_equal_means_are_all_bold(viewed: Callable) -> None:
    """Equal as printed; for a loss the least is best."""
    view, _ = viewed(made("ce", top1=0.50001), made("kd", top1=0.50002), made("at", top1=0.4))
    (grid,) = [g for s, g in grids(view) if s == "curve"]
    assert {row[0].text: row[1].bold for row in grid.rows} == {"ce": True, "kd": True, "at": False}
    view = make_view(view.table, measure="nll")
    (grid,) = [g for s, g in grids(view) if s == "curve"]
    assert {row[0].text: row[1].bold for row in grid.rows} == {"ce": True, "kd": True, "at": False}


def test_marks(found: dict[str, Grid]) -> None:
    grid = found["results-1"]
    assert {c.marks for c in row_of(grid, "kd")[1:]} == {""}
    assert {c.marks for c in row_of(grid, "kdplus")[1:]} == {"q"}
    assert [c.marks for c in row_of(grid, "at")[1:]] == ["", "", "", "", "ur"]
    assert [c.marks for c in row_of(grid, "rkd")[1:]] == ["", "", "x", "", ""]
    assert [c.text for c in row_of(found["results-2"], "rkd")[1:2]] == ["-"]
    legend = grid.notes[-1]
    for word in ("u: updates", "r: student rows", "q: teacher queries", "x: a pair left out"):
        assert word in legend


def test_paired_by_hand(found: dict[str, Grid]) -> None:
    grid, tests = found["paired-1"], 0
    for arm in set(ARMS) - {"kd"}:
        for size in SIZES:
            left = [2] if (arm, size) == ("rkd", 100) else []
            seeds = [0] if (arm, size) == ("at", 50) else [s for s in SEEDS if s not in left]
            d = np.array([column(arm, size)[s] - column("kd", size)[s] for s in seeds]) * 100
            row = [cell.text for cell in row_of(grid, arm, f"{size:,}")]
            tests += 1
            assert row[2] == f"{d.mean():+.2f}"
            assert row[4] == str(len(d))
            if len(d) == 1:
                assert row[3] == "-"
                continue
            low, high = scipy_stats.t.interval(0.95, len(d) - 1, d.mean(), scipy_stats.sem(d))
            assert row[3] == f"[{low:+.2f}, {high:+.2f}]"
            assert row[6] == f"{2 / 2 ** len(d):.3g}"
    assert tests == len(grid.rows)
    assert any("seed 2: split ffffffff, not 22222222" in note for note in grid.notes)


def test_cost_by_hand(found: dict[str, Grid]) -> None:
    row = [cell.text for cell in row_of(found["cost-1"], "at", "1,000")]
    assert row[2:7] == ["5", "200", "12,800", "1,000", "5.0"]
    row = [cell.text for cell in row_of(found["cost-1"], "kdplus", "250")]
    assert row[2:7] == ["5", "100", "6,400", "25,000", "4.0"]


def test_equivalence_marks_are_kept(view: View, found: dict[str, Grid]) -> None:
    texts = [row[2].text for row in found["equivalence-1"].rows]
    assert any(text.startswith("> 1,000") for text in texts)
    assert any(text.startswith("< 10") for text in texts)
    assert any(text.replace(",", "").isdecimal() for text in texts)


def test_csv_keeps_all_digits(view: View) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(view.curve))))
    assert len(rows) == len(view.curve)
    for row, mean in zip(rows, view.curve["mean"], strict=True):
        assert float(row["mean"]) == mean


# --- files --------------------------------------------------------------------------------------


def tex_structure(text: str) -> None:
    """Braces match, environments nest, every row of a tabular has the columns it declares."""
    plain = re.sub(r"\\[\\{}$&#_%]", lambda m: "\n" if m[0] == r"\\" else "", text)
    plain = re.sub(r"^%.*$", "", plain, flags=re.M)
    depth = 0
    for letter in plain:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not set("#^~%") & set(plain.replace("% ", "")), "unescaped"
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.S
    ):
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def test_latex_structure(found: dict[str, Grid]) -> None:
    text = to_latex(list(found.values()))
    tex_structure(text)
    assert text.count(r"\begin{table}") == len(found)
    assert r"\textbf{" in text
    assert r"$\pm$" in text
    assert r"$-$" in text


def hostile_grid() -> Grid:
    row = [Cell(HOSTILE), Cell(HOSTILE, "q", HOSTILE, True)]
    return Grid("results-1", HOSTILE, ("arm", HOSTILE), [row], [HOSTILE], ["x"])


def test_hostile_latex_and_markdown() -> None:
    text = to_latex([hostile_grid()])
    tex_structure(text)
    assert r"\input" not in text
    table = to_markdown([hostile_grid()])
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in rows] == [3, 3, 3]
    assert "<img" not in re.sub(r"\\<", "", table)


@given(st.text(max_size=30))
def test_any_text_is_escaped(text: str) -> None:
    tex_structure(rf"\begin{{tabular}}{{lr}}{chr(10)}a & {tex(text)} \\{chr(10)}\end{{tabular}}")
    assert "\n" not in tex(text)
    assert re.search(r"(?<!\\)(\\\\)*[|<`]", markdown(text)) is None


# --- sentences ----------------------------------------------------------------------------------


def test_what_is_shown(view: View) -> None:
    said = " ".join(shown(view))
    assert "On digits, net_big → net_small:" in said
    assert "kd needs" in said
    row = view.paired[(view.paired["arm"] == "ours") & (view.paired["dataset"] == "digits")]
    for mean in row["mean"]:
        assert f"{100 * mean:+.2f} [" in said


def test_what_is_not_shown(view: View, evidence: Evidence) -> None:
    said = " ".join(not_shown(view, evidence))
    for word in (
        "5 pairs allow no less than 0.0625", "6 are needed for less than 0.05",
        "A single seed has no interval and no band: at (50 examples",
        "updates (mark u) and student rows (mark r): at (1,000 examples",
        "teacher queries (mark q): ce and kdplus at every size",
        "2 pairs left out, because the splits differ: rkd (100 examples",
        "not extrapolated", "share one trained teacher",
        "1 failed, 1 not finished, 1 missing and 1 unreadable",
        "rkd with 10 examples on letters", "Nothing is said about other data",
    ):  # fmt: skip
        assert word in said, word
    crossing = view.paired[(view.paired["low"] <= 0) & (view.paired["high"] >= 0)]
    known = int(view.paired["low"].notna().sum())
    assert f"For {len(crossing)} of {known} paired differences from kd the interval" in said


def test_no_gain_is_claimed_without_a_pair(viewed: Callable) -> None:
    view, evidence = viewed(made("kd", seed=0), made("at", seed=1, top1=0.9))
    assert "minus" not in " ".join(shown(view))
    view, evidence = viewed(made("kd"), made("kd", seed=1), made("rkd", n=70, top1=0.9))
    assert "No arm was run with kd at the same size" in " ".join(not_shown(view, evidence))


def test_baseline_that_leads_is_said_to_lead(viewed: Callable) -> None:
    runs = [made(m, 50, s, t + s / 100) for m, t in (("kd", 0.6), ("ce", 0.4)) for s in (0, 1, 2)]
    said = " ".join(shown(viewed(*runs)[0]))
    assert "kd has the highest mean top-1 accuracy with 50 examples" in said
    assert "ce minus kd, in points: -20.00" in said
    assert "gain" not in said


def test_enough_seeds_for_a_test(viewed: Callable) -> None:
    runs = [
        made(m, 50, s, t + np.random.default_rng(s).normal(0, 0.01) + s / 1e4 * (m == "kd"))
        for m, t in (("kd", 0.6), ("ce", 0.4))
        for s in range(8)
    ]
    view, evidence = viewed(*runs)
    said = " ".join(not_shown(view, evidence))
    assert "After Holm's correction 1 of 1 comparison have p below 0.05" in said
    assert "No sign-flip test" not in said


def test_without_baseline(viewed: Callable) -> None:
    view, evidence = viewed(made("at"), made("rkd", top1=0.6))
    assert "--baseline names another" in " ".join(not_shown(view, evidence))
    assert not [grid for section, grid in grids(view) if section == "paired"]
    assert {c.marks for _, g in grids(view) for row in g.rows for c in row} == {""}


def test_facts(view: View) -> None:
    known = facts(view.table)
    assert ("ours", "method.temperature", "8.0") in known.own
    assert ("budget.steps", "100") in known.common
    assert {name for name, _, _ in known.data} == {"digits", "letters"}
    assert ("digits", "stratified", "2", "2" * 64) in {row[:4] for row in known.splits}
    assert ("digits", "stratified", "2", "f" * 64, "100", 1) in known.splits
    assert known.versions == [("torch", "2")]
    assert known.teachers[0][:4] == ("net_big", "t0", "90.00 %", "1,000")
    rows = view.table[view.table["role"] == "student"]
    assert sum(row[-1] for row in known.machines) == len(rows)


def test_results_package_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys, fskd.results, fskd.report; from fskd.results import writing; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
