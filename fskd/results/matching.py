"""Which rows of the tidy table are compared with which: tasks, seeds, pairs, and the baseline."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fskd.errors import SettingError, suggest
from fskd.results.stats import Floats
from fskd.results.tidy import COLUMNS, TEXT

TASK = ["dataset", "student", "teacher"]
CELL = [*TASK, "arm", "n_train"]
BASELINES = ("kd", "ce")
_UNKNOWN = -1  # a split seed that another tool did not tell


def baseline_of(table: pd.DataFrame, given: str | None = None) -> str:
    """The arm that others are compared with: the given one, else ``kd``, else ``ce``, else "".

    Raises:
        SettingError: If the table has no arm of the given name.
    """
    known = set(table.loc[table["role"] == "student", "arm"])
    if given is None:
        return next((name for name in BASELINES if name in known), "")
    if given not in known:
        raise SettingError("baseline", given, suggest(given, known))
    return given


def students(table: pd.DataFrame) -> pd.DataFrame:
    """The students' rows; those without a teacher once for every pair with their student.

    Training without a teacher (``ce``) belongs into the comparison of every student/teacher pair
    with the same student and data set.
    """
    rows = table[table["role"] == "student"]
    alone = rows["teacher"] == ""
    pairs = rows.loc[~alone, TASK].drop_duplicates()
    joined = rows[alone].drop(columns="teacher").merge(pairs, on=TASK[:2], how="left")
    joined["teacher"] = joined["teacher"].fillna("").astype(TEXT)
    return pd.concat([rows[~alone], joined[rows.columns]], ignore_index=True)


def per_seed(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row for each seed, split and cell, with the mean ``measure`` of its runs as ``value``.

    Several runs have the same seed and split if only their teachers' seeds differ. Rows without a
    seed are kept one by one.

    Raises:
        SettingError: If ``measure`` is no column of numbers.
    """
    if measure not in COLUMNS or COLUMNS[measure] == TEXT:
        numbers = [name for name, kind in COLUMNS.items() if kind != TEXT]
        raise SettingError("measure", measure, suggest(measure, numbers))
    known = rows[rows[measure].notna()]
    known = known.assign(
        value=known[measure].astype("float64"), split_seed=known["split_seed"].fillna(_UNKNOWN)
    )
    names = [*CELL, "seed", "split_seed", "split_sha256"]
    seeded = known["seed"].notna()
    means = known[seeded].groupby(names, sort=False)["value"].mean().reset_index()
    found = pd.concat([means, known.loc[~seeded, [*names, "value"]]])
    # Sorted, so that what is resampled does not depend on the order of folders.
    return found.sort_values([*names, "value"], ignore_index=True)


class Matched(NamedTuple):
    """Values of matched runs.

    Attributes:
        ours: (pairs,) values.
        baseline: (pairs,) values.
        refused: Pairs whose splits differ although their seeds agree: seed, our split, theirs.
        unchecked: Pairs of which one has no hash of its split.
    """

    ours: Floats
    baseline: Floats
    refused: tuple[str, ...]
    unchecked: int


def match(ours: pd.DataFrame, baseline: pd.DataFrame) -> Matched:
    """Pairs rows of ``per_seed``, at one size each, by seed and split seed.

    Such runs share the subset and the student's initialisation. That the subset is shared is
    checked by the hash of the split: pairs with different hashes are refused.
    """
    both = ours[ours["seed"].notna()].merge(baseline[baseline["seed"].notna()], on="seed")
    a, b = both["split_seed_x"], both["split_seed_y"]
    both = both[(a == b) | (a == _UNKNOWN) | (b == _UNKNOWN)].sort_values(["seed", "split_seed_x"])
    x, y = both["split_sha256_x"], both["split_sha256_y"]
    known = x.ne("") & y.ne("")
    wrong = known & x.ne(y)
    named = zip(both["seed"][wrong], x[wrong], y[wrong], strict=True)
    refused = tuple(f"seed {seed}: split {p[:8]}, not {q[:8]}" for seed, p, q in named)
    good = both[~wrong]
    return Matched(
        good["value_x"].to_numpy("float64"),
        good["value_y"].to_numpy("float64"),
        refused,
        int((~known).sum()),
    )


def cells(rows: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """(dataset, student, teacher, arm, n_train) and its rows, sorted."""
    cell: Any
    for cell, group in rows.groupby(CELL, sort=True):
        yield (*cell[:-1], int(cell[-1])), group


def against(
    rows: pd.DataFrame, baseline: str
) -> Iterator[tuple[dict[str, str], pd.DataFrame, pd.DataFrame]]:
    """Task and arm by name, the arm's rows and the baseline's in the same task (maybe none)."""
    task: Any
    for task, alike in rows.groupby(TASK, sort=True):
        theirs = alike[alike["arm"] == baseline]
        for arm, ours in alike.groupby("arm", sort=True):
            yield dict(zip(TASK, task, strict=True)) | {"arm": str(arm)}, ours, theirs


class Whole(NamedTuple):
    """The seeds that have a value at every size.

    Attributes:
        sizes: (m,) numbers of examples, increasing.
        values: (seeds, m).
        rows: One row a seed for ``match``; ``value`` is its row in ``values``.
    """

    sizes: list[int]
    values: Floats
    rows: pd.DataFrame


def whole_curves(rows: pd.DataFrame) -> Whole:
    """The complete curves among one arm's rows of ``per_seed``."""
    seeded = rows[rows["seed"].notna()]
    index = ["seed", "split_seed"]
    wide = seeded.pivot_table(index=index, columns="n_train", values="value").dropna()
    splits = seeded.groupby(index)["split_sha256"].agg(lambda s: "+".join(sorted(set(s) - {""})))
    known = wide.index.to_frame(index=False).assign(
        split_sha256=splits.reindex(wide.index).to_numpy(), value=np.arange(len(wide), dtype=float)
    )
    return Whole([int(n) for n in wide.columns], wide.to_numpy("float64"), known)
