"""Which rows of the tidy table are compared with which: setups, seeds, pairs, and the baseline."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fskd.errors import SettingError, suggest
from fskd.results.names import usual_baseline
from fskd.results.stats import Floats
from fskd.results.tidy import COLUMNS, TEXT

SETUP = ["dataset", "student", "teacher"]
CELL = [*SETUP, "arm", "n_train"]
_UNKNOWN = -1  # a split seed that another tool did not tell


def baseline_of(table: pd.DataFrame, given: str | None = None) -> str:
    """The arm that others are compared with: the given one, else the usual one, else "".

    Raises:
        SettingError: If the table has no arm of the given name.
    """
    known = set(table.loc[table["role"] == "student", "arm"])
    if given is None:
        return usual_baseline(known) or ""
    if given not in known:
        raise SettingError("baseline", given, suggest(given, known))
    return given


def students(table: pd.DataFrame) -> pd.DataFrame:
    """The students' rows; those without a teacher once for every pair with their student.

    Training without a teacher (``ce``) belongs into the setup of every student/teacher pair
    with the same student and data set.
    """
    rows = table[table["role"] == "student"]
    alone = rows["teacher"] == ""
    pairs = rows.loc[~alone, SETUP].drop_duplicates()
    joined = rows[alone].drop(columns="teacher").merge(pairs, on=SETUP[:2], how="left")
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
    theirs: dict[int, list[tuple[Any, ...]]] = {}
    for row in _seeded(baseline):
        theirs.setdefault(row[0], []).append(row)
    good: list[tuple[float, float]] = []
    refused, unchecked = [], 0
    for seed, split, x, value in _seeded(ours):
        for _, other, y, known in theirs.get(seed, ()):
            if split != other and _UNKNOWN not in (split, other):
                continue
            if x and y and x != y:
                refused.append(f"seed {seed}: split {x[:8]}, not {y[:8]}")
                continue
            unchecked += not (x and y)
            good.append((value, known))
    values = np.asarray(good, dtype=np.float64).reshape(-1, 2)
    return Matched(values[:, 0], values[:, 1], tuple(refused), unchecked)


def _seeded(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """(seed, split seed, split, value) of the rows with a seed, sorted; loops beat merges here."""
    columns = (rows[name].tolist() for name in ("seed", "split_seed", "split_sha256", "value"))
    known = [row for row in zip(*columns, strict=True) if not pd.isna(row[0])]
    return sorted(known, key=lambda row: row[:2])


def cells(rows: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """(dataset, student, teacher, arm, n_train) and its rows, sorted."""
    cell: Any
    for cell, group in rows.groupby(CELL, sort=True):
        yield (*cell[:-1], int(cell[-1])), group


def against(
    rows: pd.DataFrame, baseline: str
) -> Iterator[tuple[dict[str, str], pd.DataFrame, pd.DataFrame]]:
    """Setup and arm by name, the arm's rows and the baseline's in the same setup (maybe none)."""
    setup: Any
    for setup, alike in rows.groupby(SETUP, sort=True):
        theirs = alike[alike["arm"] == baseline]
        for arm, ours in alike.groupby("arm", sort=True):
            yield dict(zip(SETUP, setup, strict=True)) | {"arm": str(arm)}, ours, theirs


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
