"""Results of other tools, from a CSV file, in the columns of our own."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fskd.errors import FskdError, SettingError, suggest
from fskd.results.tidy import COLUMNS, SHARES, TEXT, WHOLE, frame

NEEDED = ("arm", "n_train", "top1")


def parse_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """``theirs=ours`` of a command line as a dict.

    Example:
        >>> parse_mapping(["accuracy=top1", "num=n_train"])
        {'accuracy': 'top1', 'num': 'n_train'}
    """
    found = {}
    for pair in pairs:
        theirs, equals, ours = pair.rpartition("=")
        if not (theirs and equals and ours):
            raise SettingError("map", pair, "COLUMN=NAME, such as accuracy=top1")
        found[theirs] = ours
    return found


def read_csv_results(
    path: str | os.PathLike[str],
    mapping: Mapping[str, str] | None = None,
    fill: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Rows of a CSV file with a header as a tidy table; what it lacks is empty.

    Columns that bear our names are read without a mapping; other columns are ignored. Accuracies
    and other shares are in [0, 1]. Without seeds the rows have means and spreads, but no pairs;
    without the hash of the split, pairs are formed by seeds and counted as unchecked.

    Args:
        path: The file, in UTF-8.
        mapping: Their column -> our column.
        fill: Our column -> a value for all rows, such as ``{"dataset": "cifar100"}``.

    Raises:
        FskdError: If the file cannot be read, lacks ``arm``, ``n_train`` or ``top1``, or holds a
            value that its column cannot.
    """
    path = Path(path)
    raw = _read(path)
    mapping, fill = dict(mapping or {}), dict(fill or {})
    _check_names(path, raw, mapping, fill)
    mapping = {name: name for name in raw.columns if name in COLUMNS} | mapping
    columns = {ours: _column(path, raw[theirs], ours) for theirs, ours in mapping.items()}
    for ours, value in fill.items():
        columns[ours] = _column(path, pd.Series([value] * len(raw), dtype=str), ours)
    for name in NEEDED:
        if name not in columns:
            raise SettingError("map", path.name, f"a file with {name}, or a column mapped to it")
        if (missing := columns[name].isna() | columns[name].astype(str).eq("")).any():
            raise FskdError(f"{path}: line {missing.argmax() + 2}: {name} is empty")
    columns.setdefault("method", columns["arm"])
    columns["role"] = pd.Series(["student"] * len(raw), dtype=TEXT)
    columns["source"] = pd.Series([path.name] * len(raw), dtype=TEXT)
    return frame(columns, len(raw))


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, skipinitialspace=True, skip_blank_lines=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = " ".join(str(error).split())
        raise FskdError(f"{path}: not a readable CSV file ({reason})") from None


def _check_names(
    path: Path, raw: pd.DataFrame, mapping: Mapping[str, str], fill: Mapping[str, str]
) -> None:
    for theirs in mapping:
        if theirs not in raw.columns:
            raise SettingError("map", theirs, f"a column of {path.name}: {', '.join(raw.columns)}")
    taken = [*mapping.values(), *fill, *(set(raw.columns) & set(COLUMNS) - set(mapping))]
    for ours in taken:
        if ours not in COLUMNS:
            raise SettingError("map", ours, suggest(ours, COLUMNS))
        if taken.count(ours) > 1:
            raise SettingError("map", ours, "one source for each column")


def _column(path: Path, raw: pd.Series, name: str) -> pd.Series:
    """A column in its type, or an error that names the line."""
    kind: Any = COLUMNS[name]
    if kind == TEXT:
        return raw.fillna("").str.strip().astype(TEXT)
    numbers = pd.to_numeric(raw, errors="coerce")
    accepted, wrong = "a number", numbers.isna() & raw.notna()
    if kind == WHOLE:
        accepted, wrong = "a whole number from 0", wrong | (numbers % 1 != 0) & numbers.notna()
    if name in SHARES:
        accepted, wrong = "a share in [0, 1] (percent divided by 100)", wrong | (numbers > 1)
    wrong |= numbers < 0
    if wrong.any():
        place = f"{path.name}, line {wrong.argmax() + 2}, {name}"
        raise SettingError(place, raw[wrong.argmax()], accepted)
    return numbers.astype(kind)
