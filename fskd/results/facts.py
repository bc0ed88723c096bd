"""What the runs of a report were made with: settings, data, splits, versions, machines."""

import json
from typing import Any, NamedTuple

import pandas as pd

from fskd.results.loading import library_versions
from fskd.results.summary import telling


class Facts(NamedTuple):
    """What belongs to the fine print.

    Attributes:
        common: Settings that all student runs share, (name, value).
        own: (arm, name, values) of the settings that differ, networks and data set aside.
        data: (data set, sha256 of the training data, of the test data).
        splits: (data set, sampler, split seed, sha256 of the split, sizes, runs).
        teachers: (name, key, top-1, examples, runs).
        versions: (library, versions).
        machines: (device, precision, processes, runs).
        sources: (source, rows).
    """

    common: list[tuple[str, str]]
    own: list[tuple[str, str, str]]
    data: list[tuple[str, str, str]]
    splits: list[tuple[str, str, str, str, str, int]]
    teachers: list[tuple[str, str, str, str, int]]
    versions: list[tuple[str, str]]
    machines: list[tuple[str, str, str, int]]
    sources: list[tuple[str, int]]


def facts(table: pd.DataFrame) -> Facts:
    """Collects them from the tidy table."""
    rows = table[table["role"] == "student"]
    common, own = _settings(rows)
    data = rows[["dataset", "data_sha256", "test_sha256"]].drop_duplicates().sort_values("dataset")
    counts = rows.groupby("source", sort=True).size()
    return Facts(
        common, own,
        [tuple(row) for row in data.itertuples(index=False, name=None)],
        _splits(rows), _teachers(rows),
        [(library, ", ".join(known)) for library, known in library_versions(rows).items()],
        _machines(rows),
        [(str(source), int(n)) for source, n in counts.items()],
    )  # fmt: skip


def _settings(rows: pd.DataFrame) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    parsed = {text: json.loads(text) for text in rows["settings"].unique() if text}
    if not parsed:
        return [], []
    apart = telling(list(parsed.values()))
    first = next(iter(parsed.values()))
    common = [(name, value) for name, value in first.items() if name not in apart]
    own = []
    for arm, mine in rows.groupby("arm", sort=True):
        known = [parsed[text] for text in mine["settings"].unique() if text]
        for name in dict.fromkeys(name for settings in known for name in settings):
            if name in apart and not name.startswith(("data.name", "student", "teacher.")):
                values = {settings[name] for settings in known if name in settings}
                if values != {"None"}:
                    own.append((str(arm), name, ", ".join(sorted(values))))
    return common, own


def _splits(rows: pd.DataFrame) -> list[tuple[str, str, str, str, str, int]]:
    found = []
    known = rows[rows["split_sha256"].ne("")]
    names = ["dataset", "sampler", "split_seed", "split_sha256"]
    group: Any
    for group, mine in known.groupby(names, sort=True, dropna=False):
        dataset, sampler, seed, digest = group
        sizes = ", ".join(f"{size:,}" for size in sorted(set(mine["n_train"])))
        text = "-" if pd.isna(seed) else str(seed)
        found.append((dataset, sampler, text, digest, sizes, len(mine)))
    return found


def _teachers(rows: pd.DataFrame) -> list[tuple[str, str, str, str, int]]:
    found = []
    known = rows[rows["teacher"].ne("")]
    group: Any
    for group, mine in known.groupby(["teacher", "teacher_key"], sort=True):
        name, key = group
        top1, n = mine["teacher_top1"].mean(), mine["teacher_n_train"].max()
        accuracy = "-" if pd.isna(top1) else f"{100 * top1:.2f} %"
        found.append((name, key or "-", accuracy, "-" if pd.isna(n) else f"{n:,}", len(mine)))
    return found


def _machines(rows: pd.DataFrame) -> list[tuple[str, str, str, int]]:
    found = []
    names = ["device", "precision", "processes"]
    group: Any
    for group, mine in rows.groupby(names, sort=True, dropna=False):
        device, precision, processes = group
        count = "-" if pd.isna(processes) else str(processes)
        found.append((device or "-", precision or "-", count, len(mine)))
    return found
