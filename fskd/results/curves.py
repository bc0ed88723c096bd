"""The tables that figures and reports are made of, from the tidy table of results.

Every function takes the table of ``fskd.results.load`` and returns a plain DataFrame. A *setup* is
(dataset, student, teacher); runs without a teacher appear in every setup of their student. Arms are
compared with a baseline (see ``names.BASELINES``). Without a baseline the tables of
comparisons are empty.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from fskd.results import stats
from fskd.results.aggregate import interquartile_mean, probability_of_improvement
from fskd.results.matching import (
    CELL,
    SETUP,
    against,
    baseline_of,
    cells,
    match,
    per_seed,
    students,
    whole_curves,
)  # fmt: skip
from fskd.results.scaling import equivalence, log_area
from fskd.results.summary import telling

LOWER_IS_BETTER = ("nll", "ece", "tv_train", "tv_test", "tv_paths")
BUDGETS = ("steps", "student_rows", "teacher_queries")
TEXTS = (
    *CELL[:4],
    "how",
    "test",
    "baseline",
    "refused",
    "varies",
    *("device", "precision", "processes"),
)


def curve_table(
    table: pd.DataFrame, baseline: str | None = None, *, measure: str = "top1",
    how: stats.How = "t", level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Accuracy against examples: one row for each setup, arm and number of examples.

    Returns:
        Columns ``dataset, student, teacher, arm, n_train``; ``mean, std, n, low, high, how`` over
        seeds (see ``stats.summarise``); ``steps, student_rows, teacher_queries``, medians; and
        what a reader must know: ``single_seed``; ``no_baseline`` (it was not run at this size);
        ``unequal_steps, unequal_student_rows, unequal_teacher_queries`` (not all runs of the arm
        and the baseline have the same); ``mixed_splits`` (some pair has different splits);
        ``varies`` (settings that differ between the runs of the arm, at this or other sizes).
    """
    rows, name = students(table), baseline_of(table, baseline)
    values = dict(cells(per_seed(rows, measure)))
    found = []
    full = dict(cells(rows))
    varies = {cell: _varying(group) for cell, group in rows.groupby([*SETUP, "arm"], sort=False)}
    for cell, seeds in values.items():
        *setup, _, n_train = cell
        runs, other = full[cell], (*setup, name, n_train)
        summary = stats.summarise(seeds["value"], how, level=level, seed=seed)
        record = dict(zip(CELL, cell, strict=True)) | summary._asdict()
        record |= {budget: runs[budget].astype("float64").median() for budget in BUDGETS}
        record |= {"single_seed": summary.n == 1, "no_baseline": other not in values}
        together = pd.concat([runs, full[other]]) if other in values else runs
        for budget in BUDGETS:
            record[f"unequal_{budget}"] = together[budget].nunique() > 1
        record["mixed_splits"] = other in values and bool(match(seeds, values[other]).refused)
        record["varies"] = varies[cell[:4]]
        found.append(record)
    return _frame(found, CURVE)


CURVE = (
    *CELL, *stats.Summary._fields, *BUDGETS, "single_seed", "no_baseline",
    *(f"unequal_{budget}" for budget in BUDGETS), "mixed_splits", "varies",
)  # fmt: skip


def paired_table(
    table: pd.DataFrame, baseline: str | None = None, *, measure: str = "top1",
    how: stats.How = "t", level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Each arm minus the baseline at the same size, over the seeds and splits that both have.

    Returns:
        Columns ``dataset, student, teacher, arm, n_train, baseline``; ``mean, error, n, low, high,
        how, p, smallest_p, test`` (see ``stats.paired``; empty without a pair); ``p_holm``, for all
        comparisons in the table; ``refused``, the pairs left out because their splits differ;
        ``unchecked``, the number of pairs whose splits could not be compared.
    """
    rows, name = students(table), baseline_of(table, baseline)
    values = dict(cells(per_seed(rows, measure)))
    found = []
    for cell, seeds in values.items():
        *setup, arm, n_train = cell
        other = (*setup, name, n_train)
        if arm == name or other not in values:
            continue
        pairs = match(seeds, values[other])
        record = dict(zip(CELL, cell, strict=True)) | {"baseline": name, "n": 0}
        if len(pairs.ours):
            record |= stats.paired(
                pairs.ours, pairs.baseline, how, level=level, seed=seed
            )._asdict()
        record |= {"refused": "; ".join(pairs.refused), "unchecked": pairs.unchecked}
        found.append(record)
    made = _frame(found, PAIRED)
    made["p_holm"] = stats.holm(made["p"].astype("float64").tolist())
    return made


PAIRED = (
    *CELL, "baseline", *stats.Difference._fields, "p_holm", "refused", "unchecked"
)  # fmt: skip


def equivalence_table(
    table: pd.DataFrame, baseline: str | None = None, *, measure: str = "top1",
    level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How many examples the baseline needs for what an arm reaches at every size.

    Only seeds count that the baseline has at all of its sizes and the arm at this one, and whose
    splits are the same where both have the size.

    Returns:
        Columns ``dataset, student, teacher, arm, n_train, baseline``; ``needed`` with
        ``needed_mark``: the number, or ``>`` and the baseline's largest size, or ``<`` and its
        smallest; ``low, low_mark, high, high_mark``, the interval; ``ratio``, needed / n_train, NaN
        if marked; ``n``, seeds. Cells without a seed in common have no row.
    """
    rows, name = students(table), baseline_of(table, baseline)
    sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
    found = []
    for names, ours, theirs in against(per_seed(rows, measure), name):
        if names["arm"] == name or theirs.empty:
            continue
        sizes, curves, known = whole_curves(theirs)
        n_train: Any
        for n_train, seeds in ours.groupby("n_train"):
            pairs = match(seeds, known)
            if not len(pairs.ours):
                continue
            chosen = curves[pairs.baseline.astype(int)]
            e = equivalence(sizes, sign * chosen, sign * pairs.ours, level=level, seed=seed)
            record: dict[str, Any] = {**names, "n_train": n_train, "baseline": name, "n": e.n}
            for part in ("needed", "low", "high"):
                bound = getattr(e, part)
                record |= {} if bound is None else {part: bound.value, f"{part}_mark": bound.mark}
            record["ratio"] = np.nan if e.needed.mark else e.needed.value / n_train
            found.append(record)
    return _frame(found, EQUIVALENCE)


EQUIVALENCE = (
    *CELL, "baseline", "needed", "needed_mark", "low", "low_mark", "high", "high_mark",
    "ratio", "n",
)  # fmt: skip


def area_table(
    table: pd.DataFrame, baseline: str | None = None, *, measure: str = "top1",
    how: stats.How = "t", level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Mean accuracy over log n (``scaling.log_area``) of every arm with two or more sizes.

    The area covers the sizes that arm and baseline share, so rows with different ``n_min``,
    ``n_max`` or ``sizes`` must not be ranked; seeds count that the arm has at all of them.

    Returns:
        Columns ``dataset, student, teacher, arm``; ``n_min, n_max, sizes``; ``mean, std, n, low,
        high, how`` over seeds; ``baseline``; ``difference`` with ``error``, ``p`` and ``pairs``:
        the arm minus the baseline over seeds of both (empty for the baseline itself).
    """
    rows, name = students(table), baseline_of(table, baseline)
    found = []
    for names, ours, theirs in against(per_seed(rows, measure), name):
        shared = set(ours["n_train"])
        if not theirs.empty:
            shared &= set(theirs["n_train"])
        areas = _areas(ours[ours["n_train"].isin(shared)])
        if len(shared) < 2 or areas.empty:
            continue
        record = {**names, "n_min": min(shared), "n_max": max(shared), "sizes": len(shared)}
        summary = stats.summarise(areas["value"], how, level=level, seed=seed)
        record |= {"baseline": name} | summary._asdict()
        if names["arm"] != name and not theirs.empty:
            pairs = match(areas, _areas(theirs[theirs["n_train"].isin(shared)]))
            if len(pairs.ours):
                d = stats.paired(pairs.ours, pairs.baseline, seed=seed)
                record |= {"difference": d.mean, "error": d.error, "p": d.p, "pairs": d.n}
        found.append(record)
    return _frame(found, AREA)


AREA = (
    *SETUP, "arm", "n_min", "n_max", "sizes", *stats.Summary._fields, "baseline", "difference",
    "error", "p", "pairs",
)  # fmt: skip


def cost_table(table: pd.DataFrame, *, measure: str = "top1") -> pd.DataFrame:
    """What the runs of every setup, arm and size cost, beside what they reached.

    ``train_seconds`` leaves out teachers, which are made by the first run that needs them, and
    measuring; times on different devices cannot be compared.

    Returns:
        Columns ``dataset, student, teacher, arm, n_train, runs, mean`` (of ``measure``); means of
        ``steps, epochs, student_rows, teacher_queries, train_seconds, seconds``; ``device``,
        ``precision`` and ``processes``, all that occur.
    """
    rows = students(table)
    found = []
    for cell, runs in cells(rows):
        record = dict(zip(CELL, cell, strict=True)) | {"runs": len(runs)}
        record |= {"mean": runs[measure].mean()} | {
            name: runs[name].astype("float64").mean() for name in COSTS
        }
        for name in ("device", "precision", "processes"):
            record[name] = ", ".join(sorted({str(v) for v in runs[name].dropna()} - {""}))
        found.append(record)
    return _frame(found, COST)


COSTS = ("steps", "epochs", "student_rows", "teacher_queries", "train_seconds", "seconds")
COST = (*CELL, "runs", "mean", *COSTS, "device", "precision", "processes")


def aggregate_table(
    table: pd.DataFrame, baseline: str | None = None, *, measure: str = "top1",
    level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Arms over all tasks and sizes that they share with the baseline; see ``aggregate``.

    Every (dataset, student, teacher, n_train) is a task here. Rows with different ``tasks`` cover
    different ones; compare an arm with the baseline's number beside it.

    Returns:
        Columns ``arm, baseline, tasks``; ``iqm, iqm_low, iqm_high``; ``baseline_iqm`` on the same
        tasks; ``improves, improves_low, improves_high``, the probability of improvement over the
        baseline.
    """
    rows, name = students(table), baseline_of(table, baseline)
    sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
    values = {cell: seeds["value"].to_numpy() for cell, seeds in cells(per_seed(rows, measure))}
    found = []
    for arm in sorted({cell[3] for cell in values} - {name}):
        both = [
            (ours, values[other])
            for cell, ours in values.items()
            if cell[3] == arm and (other := (*cell[:3], name, cell[4])) in values
        ]
        if not both:
            continue
        a, b = [x for x, _ in both], [y for _, y in both]
        iqm = interquartile_mean(a, level=level, seed=seed)
        better = probability_of_improvement(
            [sign * x for x in a], [sign * y for y in b], level=level, seed=seed
        )
        theirs = interquartile_mean(b, level=level, seed=seed).value
        found.append((arm, name, len(both), *iqm, theirs, *better))
    return pd.DataFrame(found, columns=list(AGGREGATE))


AGGREGATE = (
    "arm", "baseline", "tasks", "iqm", "iqm_low", "iqm_high", "baseline_iqm", "improves",
    "improves_low", "improves_high",
)  # fmt: skip


def missing_keys(expected: Iterable[str], table: pd.DataFrame) -> list[str]:
    """Keys that are expected, such as those of a protocol's runs, and not in the table."""
    known = set(table["key"])
    return [key for key in dict.fromkeys(expected) if key not in known]


def _areas(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a seed with the area under its curve as ``value``, for ``match``."""
    sizes, values, known = whole_curves(rows)
    if len(sizes) < 2:
        return known.iloc[:0]
    return known.assign(value=[log_area(sizes, curve) for curve in values])


def _varying(runs: pd.DataFrame) -> str:
    settings = [json.loads(text) for text in runs["settings"].unique() if text]
    return ", ".join(sorted(telling(settings)))


def _frame(records: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """A table with these columns; texts that a record lacks are empty, numbers are NaN."""
    made = pd.DataFrame(records, columns=list(columns))
    texts = [name for name in columns if name in TEXTS or name.endswith("_mark")]
    return made.astype({name: object for name in texts}).fillna({name: "" for name in texts})
