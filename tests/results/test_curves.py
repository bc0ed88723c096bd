"""Curve tables: what is compared with what, against sums by hand."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fskd.errors import SettingError
from fskd.results import curves, stats
from fskd.results.aggregate import interquartile_mean, probability_of_improvement
from fskd.results.curves import (
    aggregate_table,
    area_table,
    cost_table,
    curve_table,
    equivalence_table,
    missing_keys,
    paired_table,
)
from fskd.results.external import read_csv_results
from fskd.results.loading import load
from fskd.results.matching import baseline_of
from fskd.results.scaling import equivalence, log_area
from fskd.results.store import Result
from fskd.results.tidy import combined

sys.path.insert(0, str(Path(__file__).parent))
from made import TEACHER, made, write

SIZES, SEEDS = (20, 50, 100), (0, 1, 2, 3)
MEANS = {"ce": (0.2, 0.4, 0.6), "kd": (0.3, 0.5, 0.7), "kdplus": (0.4, 0.68, 0.8)}
COLUMNS = {
    curve_table: curves.CURVE, paired_table: curves.PAIRED, equivalence_table: curves.EQUIVALENCE,
    area_table: curves.AREA, cost_table: curves.COST, aggregate_table: curves.AGGREGATE,
}  # fmt: skip
ALL = list(COLUMNS)


def accuracy(method: str, size: int, seed: int) -> float:
    noise = np.random.default_rng([len(method), size, seed]).normal(0, 0.01)
    return float(MEANS[method][SIZES.index(size)] + 0.01 * seed + noise)


def study(**changes: object) -> list[Result]:
    return [
        made(m, n, s, accuracy(m, n, s), **changes) for m in MEANS for n in SIZES for s in SEEDS
    ]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """The table of these results."""

    def call(*results: Result) -> pd.DataFrame:
        return load(write(tmp_path / "runs", *results), cache=False)

    return call


def column(method: str, size: int) -> np.ndarray:
    return np.array([accuracy(method, size, seed) for seed in SEEDS])


def at(made_table: pd.DataFrame, **where: object) -> pd.Series:
    """The only row with these values."""
    for name, value in where.items():
        made_table = made_table[made_table[name] == value]
    assert len(made_table) == 1
    return made_table.iloc[0]


# --- every table -------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ALL)
def test_columns(function: Callable, table: Callable) -> None:
    """As documented, with and without rows."""
    full = function(table(*study()))
    empty = function(table(*study()).iloc[:0])
    assert len(full)
    assert len(empty) == 0
    assert tuple(full.columns) == tuple(empty.columns) == COLUMNS[function]
    documented = function.__doc__.replace(",", " ").replace("`", " ").replace(";", " ").split()
    for name in COLUMNS[function]:
        assert name in documented or name.endswith("_holm"), name


@pytest.mark.parametrize("function", ALL)
def test_order_of_rows(function: Callable, table: Callable) -> None:
    """Plays no part."""
    one = table(*study())
    shuffled = one.sample(frac=1, random_state=0)
    more = {} if function in (cost_table, equivalence_table, aggregate_table) else {"how": "bca"}
    pd.testing.assert_frame_equal(function(one, **more), function(shuffled, **more))


@pytest.mark.parametrize("function", [f for f in ALL if f is not cost_table])
def test_unknown_names(function: Callable, table: Callable) -> None:
    """Arms and measures that are not there are named, with those that are."""
    one = table(*study())
    with pytest.raises(SettingError, match=r"baseline: fitnet .* known: ce, kd, kdplus"):
        function(one, "fitnet")
    with pytest.raises(SettingError, match="measure: arm "):
        function(one, measure="arm")


def test_baseline(table: Callable) -> None:
    """The given one, kd, ce, or none; a teacher is no arm."""
    one = table(*study())
    assert baseline_of(one) == "kd"
    assert baseline_of(one, "kdplus") == "kdplus"
    assert baseline_of(one[one["arm"] != "kd"]) == "ce"
    assert baseline_of(one[one["arm"] == "kdplus"]) == ""
    assert baseline_of(one.assign(role="teacher")) == ""
    alone = one[one["arm"] == "kdplus"]
    assert curve_table(alone)["no_baseline"].all()
    for function in (paired_table, equivalence_table, aggregate_table):
        assert len(function(alone)) == 0
    assert len(area_table(alone)) == 1


# --- curves ------------------------------------------------------------------------------------


def test_curve(table: Callable) -> None:
    """Mean, spread and interval over seeds; runs without a teacher are in the teacher's task."""
    found = curve_table(table(*study()))
    assert len(found) == 9
    assert set(found["teacher"]) == {"net_big"}
    for method in MEANS:
        for size in SIZES:
            row = at(found, arm=method, n_train=size)
            expected = stats.summarise(column(method, size))
            assert tuple(row[list(stats.Summary._fields)]) == pytest.approx(expected)
            assert not row["single_seed"]
            assert not row["no_baseline"]
    percentile = curve_table(table(*study()), how="percentile", seed=3)
    assert set(percentile["how"]) == {"percentile"}


def test_tasks(table: Callable) -> None:
    """Arms without a teacher are compared with those of every teacher, or stay alone."""
    other = TEACHER | {"name": "net_huge", "key": "t1"}
    runs = [
        made(), made("ce", top1=0.4), made("ce", config={"data.name": "svhn"}),
        made(key="huge", teacher=other, config={"teacher": {"name": "net_huge"}}),
    ]  # fmt: skip
    found = curve_table(table(*runs))
    assert list(zip(found["dataset"], found["teacher"], found["arm"], strict=True)) == [
        ("digits", "net_big", "ce"), ("digits", "net_big", "kd"), ("digits", "net_huge", "ce"),
        ("digits", "net_huge", "kd"), ("svhn", "", "ce"),
    ]  # fmt: skip
    assert list(paired_table(table(*runs))["arm"]) == ["ce", "ce"]


def test_teachers_seeds_are_averaged(table: Callable) -> None:
    """Two teachers' seeds are not two seeds of the student."""
    again = made(key="again", top1=0.7, config={"teacher": {"name": "net_big", "seed": 7}})
    row = at(curve_table(table(made(top1=0.5), again, made(seed=1, top1=0.8))), arm="kd")
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.7))


def test_flags(table: Callable) -> None:
    """What makes a comparison unfair is in the row of the arm and the size."""
    runs = [
        *(made(seed=s) for s in (0, 1)), made("ce", teacher_queries=0), made("at", steps=200),
        made("rkd", student_rows=1), made("crd", split_sha256="9" * 64), made("fsp", n=100),
    ]  # fmt: skip
    found = curve_table(table(*runs)).set_index("arm")
    names = [c for c in found.columns if found[c].dtype == bool]
    flags = {arm: {name for name in names if found.loc[arm, name]} for arm in found.index}
    assert flags == {
        "kd": set(),
        "ce": {"single_seed", "unequal_teacher_queries"},
        "at": {"single_seed", "unequal_steps"},
        "rkd": {"single_seed", "unequal_student_rows"},
        "crd": {"single_seed", "mixed_splits"},
        "fsp": {"single_seed", "no_baseline"},
    }
    assert found.loc["at", "steps"] == 200


def test_varies(table: Callable) -> None:
    """Settings that an arm's runs do not share, whether along the curve or by a given name."""
    runs = [made(), made(n=100, config={"budget.steps": 200}), made("ce")]
    found = curve_table(table(*runs)).set_index("arm")["varies"]
    assert set(found["kd"]) == {"budget.steps"}
    assert found["ce"] == ""


# --- comparisons -------------------------------------------------------------------------------


def test_paired(table: Callable) -> None:
    """Differences by seed, with Holm's correction over the whole table."""
    one = table(*study())
    found = paired_table(one)
    assert len(found) == 6
    assert set(found["baseline"]) == {"kd"}
    for _, row in found.iterrows():
        ours, theirs = column(row["arm"], row["n_train"]), column("kd", row["n_train"])
        expected = stats.paired(ours, theirs)
        assert row["mean"] == pytest.approx(expected.mean)
        assert (row["p"], row["smallest_p"], row["n"]) == (expected.p, 1 / 8, 4)
        assert (row["refused"], row["unchecked"]) == ("", 0)
    assert list(found["p_holm"]) == pytest.approx(stats.holm(list(found["p"])))
    assert set(paired_table(one, "ce")["arm"]) == {"kd", "kdplus"}


def test_refused_pairs(table: Callable) -> None:
    """The same seed on another split is named and left out."""
    runs = [made(seed=s, top1=0.5) for s in (0, 1)]
    ours = [made("at", seed=0, top1=0.6), made("at", seed=1, top1=0.9, split_sha256="9" * 64)]
    found = paired_table(table(*runs, *ours)).iloc[0]
    assert (found["n"], found["mean"]) == (1, pytest.approx(0.1))
    assert found["refused"] == "seed 1: split 99999999, not 11111111"


def test_no_pair_left(table: Callable) -> None:
    """A row without numbers says why."""
    found = paired_table(table(made(), made("at", split_sha256="9" * 64))).iloc[0]
    assert found["n"] == 0
    assert np.isnan(found["mean"])
    assert np.isnan(found["p_holm"])
    assert found["refused"]
    assert len(equivalence_table(table(made(), made("at", split_sha256="9" * 64)))) == 0


def test_other_split_seed_is_no_pair(table: Callable) -> None:
    """Seed 0 on split 0 and seed 0 on split 5."""
    other = made("at", config={"data.split_seed": 5}, split_sha256="5" * 64)
    found = paired_table(table(made(), other)).iloc[0]
    assert (found["n"], found["refused"]) == (0, "")


def test_other_tools(table: Callable, tmp_path: Path) -> None:
    """Paired by seed, without a hash to check; without seeds, a mean only."""
    text = "arm,n_train,top1,seed\na,50,0.6,0\na,50,0.7,1\nb,50,0.8,\nb,50,0.9,\n"
    (tmp_path / "other.csv").write_text(text)
    fill = {"dataset": "digits", "student": "net_small", "teacher": "net_big"}
    other = read_csv_results(tmp_path / "other.csv", fill=fill)
    both = combined(table(made(seed=0, top1=0.5), made(seed=1, top1=0.5)), other)
    found = paired_table(both)
    assert tuple(at(found, arm="a")[["n", "unchecked", "mean"]]) == (2, 2, pytest.approx(0.15))
    assert at(found, arm="b")["n"] == 0
    means = curve_table(both)
    assert tuple(at(means, arm="b")[["n", "mean"]]) == (2, pytest.approx(0.85))
    assert np.isnan(at(means, arm="b")["steps"])
    assert len(cost_table(both)) == 3


def test_equivalence(table: Callable) -> None:
    """The baseline's curve inverted, with the seeds that have all of it."""
    one = table(*study())
    found = equivalence_table(one, seed=5)
    whole = np.array([[accuracy("kd", n, s) for n in SIZES] for s in SEEDS])
    row = at(found, arm="kdplus", n_train=50)
    expected = equivalence(SIZES, whole, column("kdplus", 50), seed=5)
    assert row["needed"] == pytest.approx(expected.needed.value)
    assert 50 < row["needed"] < 100
    assert row["ratio"] == pytest.approx(expected.needed.value / 50)
    assert (row["low"], row["high"]) == pytest.approx((expected.low[0], expected.high[0]))
    assert row["n"] == 4
    above = at(found, arm="kdplus", n_train=100)
    assert (above["needed"], above["needed_mark"]) == (100, ">")
    assert np.isnan(above["ratio"])
    below = at(found, arm="ce", n_train=20)
    assert (below["needed"], below["needed_mark"]) == (20, "<")
    short = one[~((one["arm"] == "kd") & (one["n_train"] == 100) & (one["seed"] == 2))]
    assert set(equivalence_table(short)["n"]) == {3}


def test_measure_of_which_less_is_better(table: Callable) -> None:
    """NLL here is 1 - top1, so the same examples are needed and the same arm improves."""
    one = table(*study())
    for function in (equivalence_table, aggregate_table):
        a, b = function(one), function(one, measure="nll")
        for name in ("needed", "low", "high", "ratio", "improves"):
            if name in a:
                assert b[name].to_numpy() == pytest.approx(a[name].to_numpy(), nan_ok=True)


def test_area(table: Callable) -> None:
    """Mean accuracy over log n on the sizes shared with the baseline."""
    one = table(*study(), made("kdplus", 500, 0, 0.9))
    found = area_table(one)
    areas = {m: [log_area(SIZES, [accuracy(m, n, s) for n in SIZES]) for s in SEEDS] for m in MEANS}
    for method in MEANS:
        row = at(found, arm=method)
        assert row["mean"] == pytest.approx(np.mean(areas[method]))
        assert (row["n_min"], row["n_max"], row["sizes"], row["n"]) == (20, 100, 3, 4)
    row, expected = at(found, arm="kdplus"), stats.paired(areas["kdplus"], areas["kd"])
    assert tuple(row[["difference", "error", "p", "pairs"]]) == pytest.approx(
        (expected.mean, expected.error, expected.p, 4)
    )
    assert np.isnan(at(found, arm="kd")["difference"])


def test_cost(table: Callable) -> None:
    """Means of the counts; devices as they are."""
    runs = [made(steps=100), made(seed=1, steps=300, device="cuda:0"), made("ce", top1=0.25)]
    row = at(cost_table(table(*runs)), arm="kd")
    assert (row["runs"], row["steps"], row["train_seconds"]) == (2, 200, 2.0)
    assert row["device"] == "cpu, cuda:0"
    assert (row["precision"], row["processes"]) == ("32-true", "1")


def test_aggregate(table: Callable) -> None:
    """Over sizes and data sets that both have."""
    other = {"config": {"data.name": "svhn"}}
    svhn = [made(m, 50, s, 0.3 + s / 100, **other) for m in ("kd", "ce") for s in (0, 1)]
    found = aggregate_table(table(*study(), *svhn), seed=2)
    kd, ours = ([column(m, n) for n in SIZES] for m in ("kd", "kdplus"))
    row = at(found, arm="kdplus")
    assert row["tasks"] == 3
    assert row["iqm"] == pytest.approx(interquartile_mean(ours).value)
    assert row["baseline_iqm"] == pytest.approx(interquartile_mean(kd).value)
    better = probability_of_improvement(ours, kd, seed=2)
    assert tuple(row[["improves", "improves_low", "improves_high"]]) == pytest.approx(better)
    assert at(found, arm="ce")["tasks"] == 4


def test_missing(table: Callable) -> None:
    """Keys without a result, once, in their order."""
    one = table(made())
    assert missing_keys(["x", made().key, "b", "x"], one) == ["x", "b"]
