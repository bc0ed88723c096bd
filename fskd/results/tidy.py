"""The tidy table of results: one row a run, the same columns whichever tool made the run.

Texts that are not known are empty, numbers that are not known are missing (NaN or NA). Shares are
in [0, 1], NLL is in nats, times are in seconds.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pandas as pd

from fskd.raw import SIZE
from fskd.results.store import Result
from fskd.results.summary import flat_settings, listed, telling

TEXT: Final = "str"
WHOLE: Final = "Int64"
NUMBER: Final = "float64"
COLUMNS: dict[str, Any] = {
    "key": TEXT, "role": TEXT, "arm": TEXT, "method": TEXT, "generator": TEXT, "dataset": TEXT,
    "student": TEXT, "teacher": TEXT, "sampler": TEXT, "n_train": WHOLE, "fraction": NUMBER,
    "shots": WHOLE, "seed": WHOLE, "split_seed": WHOLE, "num_classes": WHOLE, "top1": NUMBER,
    "top5": NUMBER, "nll": NUMBER, "ece": NUMBER, "val_top1": NUMBER, "train_top1": NUMBER,
    "agreement": NUMBER, "tv_train": NUMBER, "tv_test": NUMBER, "tv_paths": NUMBER,
    "teacher_top1": NUMBER, "teacher_n_train": WHOLE, "teacher_key": TEXT, "steps": WHOLE,
    "epochs": NUMBER, "student_rows": WHOLE, "teacher_queries": WHOLE, "seconds": NUMBER,
    "train_seconds": NUMBER, "device": TEXT, "processes": WHOLE, "precision": TEXT,
    "peers_top1": TEXT, "final_loss": TEXT, "versions": TEXT, "settings": TEXT,
    "data_sha256": TEXT, "test_sha256": TEXT, "split_sha256": TEXT, "source": TEXT, "path": TEXT,
    "doubts": TEXT,
}  # fmt: skip
"""Every column and its type. ``settings``, ``versions``, ``final_loss``, ``peers_top1`` and
``doubts`` are JSON texts."""

SHARES = (
    "fraction", "top1", "top5", "ece", "val_top1", "train_top1", "agreement", "tv_train", "tv_test",
    "tv_paths", "teacher_top1",
)  # fmt: skip
"""Columns with values in [0, 1]."""

_SIZE = tuple(f"data.{name}" for name in SIZE)
_AS_THEY_ARE = (
    *("key", "n_train", "num_classes", "top1", "top5", "nll", "ece", "val_top1", "train_top1"),
    *("agreement", "tv_train", "tv_test", "tv_paths", "steps", "epochs", "student_rows"),
    *("teacher_queries", "device", "processes", "precision"),
    *("data_sha256", "test_sha256", "split_sha256", "seed", "method"),
)


def row(result: Result) -> dict[str, Any]:
    """One run's values; ``role``, ``arm`` and ``path`` depend on the others and come later.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: If the result has not the form of one.
    """
    config, data = result.config, result.config["data"]
    teacher, generator = result.teacher or {}, config["generator"]
    settings = settings_text(config)
    values = {name: getattr(result, name) for name in _AS_THEY_ARE} | {
        "generator": "" if generator is None else generator["name"],
        "dataset": data["name"],
        "student": config["student"],
        "sampler": data["sampler"]["name"],
        "fraction": _fraction(data),
        "shots": data.get("shots"),
        "split_seed": data.get("split_seed"),
        "teacher": teacher.get("name"),
        "teacher_top1": teacher.get("top1"),
        "teacher_n_train": teacher.get("n_train"),
        "teacher_key": teacher.get("key"),
        "seconds": sum(result.seconds.values()),
        "train_seconds": result.seconds.get("train"),
        "peers_top1": json.dumps(result.peers_top1),
        "final_loss": json.dumps(result.final_loss),
        "versions": json.dumps(result.versions),
        "doubts": json.dumps(result.doubts),
        "settings": settings,
        "source": "fskd",
    }
    return {name: _typed(value, COLUMNS[name]) for name, value in values.items()}


def settings_text(config: Mapping[str, Any]) -> str:
    """All settings but seeds, places and the number of examples, as JSON."""
    return json.dumps({k: v for k, v in flat_settings(config) if k not in _SIZE})


def _fraction(data: Mapping[str, Any]) -> float | None:
    """As it was set; 1 if nothing limits the examples."""
    return 1.0 if all(data.get(k) is None for k in SIZE) else data["fraction"]


def _typed(value: Any, kind: str) -> Any:
    if kind == TEXT:
        return "" if value is None else str(value)
    if value is None:
        return None
    if kind == NUMBER:
        return float(value)
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{value} is too large")
    return int(value)


def frame(columns: Mapping[str, Iterable[Any]], length: int) -> pd.DataFrame:
    """A table with every column in its type; columns that are not given are empty.

    Values must have the types that ``row`` gives them, or be None.
    """
    made = {}
    for name, kind in COLUMNS.items():
        empty = "" if kind == TEXT else None
        made[name] = pd.Series(list(columns.get(name, [empty] * length)), dtype=kind)
    return pd.DataFrame(made)


def combined(*tables: pd.DataFrame, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Several tidy tables as one, labelled anew; a run that is in two of them is kept once.

    Args:
        tables: Of ``load`` and ``read_csv_results``.
        names: As for ``labelled``.
    """
    table = pd.concat(tables, ignore_index=True)
    repeated = table["key"].ne("") & table.duplicated(["key", "source"])
    table = table[~repeated].reset_index(drop=True)
    own = table["settings"].ne("")
    for name, values in labelled(table[own], names)[["role", "dataset", "arm"]].items():
        table.loc[own, name] = values
    return table


def teacher_keys(table: pd.DataFrame) -> set[str]:
    """Keys of the teachers of some rows, of several of one run each."""
    return {key for joined in table["teacher_key"].unique() for key in joined.split("+")} - {""}


def labelled(table: pd.DataFrame, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table with ``role``, ``arm`` and unambiguous ``dataset`` filled in.

    A run whose key another run names as its teacher's has the role ``teacher``. An arm's label is
    its method, its generator if runs of the method have several, and the settings that are not
    equal in all runs of that method and generator *on the same data set, networks and number of
    examples*; seeds do not count. A budget that differs between the sizes only is thus one arm.
    Data sets of one name and different contents get the start of their hash.

    Args:
        table: Rows of fskd's own runs.
        names: Key -> arm for the runs that the caller knows the names of, such as a protocol's.
    """
    table = table.copy()
    teachers = teacher_keys(table)
    students = pd.Series("student", table.index, TEXT)
    table["role"] = students.mask(table["key"].isin(teachers), "teacher")
    parsed: dict[str, dict[str, str]] = {s: json.loads(s) for s in table["settings"].unique()}
    table["dataset"] = _unambiguous(table, {s: known["data.name"] for s, known in parsed.items()})
    labels = _labels(table, parsed)
    if names:
        labels = table["key"].map(dict(names)).fillna(labels)
    table["arm"] = labels.astype(TEXT)
    return table


def _unambiguous(table: pd.DataFrame, data: Mapping[str, str]) -> pd.Series:
    names = table["settings"].map(data).astype(TEXT)
    contents = table["data_sha256"].str[:4] + table["test_sha256"].str[:4]
    several = contents.groupby(names).transform("nunique") > 1
    return names.mask(several, names + "@" + contents).astype(TEXT)


def _labels(table: pd.DataFrame, parsed: Mapping[str, dict[str, str]]) -> pd.Series:
    students = table[table["role"] == "student"]  # a teacher is no arm, so tells none apart
    several = students.groupby("method")["generator"].nunique() > 1
    apart: dict[tuple[str, str], set[str]] = {}
    cells = ["method", "generator", "dataset", "student", "teacher", "n_train"]
    for cell, alike in students.groupby(cells)["settings"].unique().items():
        found = telling([parsed[settings] for settings in alike])
        apart.setdefault(cell[:2], set()).update(found)  # type: ignore[index]
    labels: dict[tuple[str, str, str], str] = {}
    for key in table[["method", "generator", "settings"]].drop_duplicates().itertuples(index=False):
        method, generator, settings = key
        parts = [generator if several.get(method, False) else ""]
        parts.append(listed(parsed[settings], apart.get((method, generator), ())))
        extra = ", ".join(filter(None, parts))
        labels[method, generator, settings] = f"{method} ({extra})" if extra else method
    keys = zip(table["method"], table["generator"], table["settings"], strict=True)
    return pd.Series([labels[key] for key in keys], index=table.index, dtype=TEXT)
