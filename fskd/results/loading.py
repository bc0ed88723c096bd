"""All results below a folder as one table, with a cache that reads only what changed.

The run directories stay the only record: the cache (``.results.parquet`` in the same folder) can be
deleted at any time, and is made anew if it is damaged or of another version.
"""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fskd.errors import FskdError, SettingError
from fskd.results.store import RunDir, replacing
from fskd.results.tidy import COLUMNS, NUMBER, TEXT, labelled, row

CACHE = ".results.parquet"
_TYPES = {TEXT: pa.large_string(), NUMBER: pa.float64()}
_STORED = [c for c in COLUMNS if c not in ("role", "arm", "path")]
_SCHEMA = pa.schema(
    [(name, _TYPES.get(COLUMNS[name], pa.int64())) for name in _STORED]
    + [("folder", pa.large_string()), ("stamp", pa.large_string()), ("problem", pa.large_string())],
    metadata={"fskd": "1"},  # to be raised when a column changes its meaning
)


def load(
    path: str | os.PathLike[str], *, names: Mapping[str, str] | None = None, cache: bool = True
) -> pd.DataFrame:
    """The finished runs of a folder, one row each, sorted by the name of their folders.

    Results that cannot be read are named in one warning and in ``table.attrs["unreadable"]``, and
    left out.

    Args:
        path: Folder of run directories (``out`` of the runs).
        names: Key -> arm for runs whose arms the caller knows; see ``tidy.labelled``.
        cache: Read and write the cache; it is not written where the folder cannot be.

    Returns:
        The columns of ``tidy.COLUMNS``.

    Raises:
        SettingError: If ``path`` is no folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise SettingError("results", root, "a folder of run directories")
    found = _stamps(root)
    known = _read_cache(root / CACHE) if cache else None
    table = _update(root, found, known)
    if cache and known is not table:
        _write_cache(root / CACHE, table)
    return _tidied(root, table, names)


def _stamps(root: Path) -> dict[str, str]:
    """Folder name -> what changes whenever its result does."""
    found = {}
    with os.scandir(root) as entries:
        for entry in entries:
            try:
                about = os.stat(os.path.join(entry.path, "result.json"))
            except OSError:  # unfinished, or no run directory
                continue
            found[entry.name] = f"{about.st_mtime_ns}-{about.st_size}-{about.st_ino}"
    return dict(sorted(found.items()))


def _read_cache(path: Path) -> pa.Table | None:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(_SCHEMA, check_metadata=True) else None


def _write_cache(path: Path, table: pa.Table) -> None:
    try:
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError:
        return  # a folder that cannot be written is read anew next time


def _update(root: Path, found: dict[str, str], known: pa.Table | None) -> pa.Table:
    """``known`` itself if nothing changed, else a table of exactly the folders in ``found``."""
    cached: dict[tuple[str, str], int] = {}
    if known is not None:
        places = zip(known["folder"].to_pylist(), known["stamp"].to_pylist(), strict=True)
        cached = {place: i for i, place in enumerate(places)}
    if known is not None and list(cached) == list(found.items()):
        return known
    new = [(name, stamp) for name, stamp in found.items() if (name, stamp) not in cached]
    kept = [cached[item] for item in found.items() if item in cached]
    read = pa.Table.from_pylist([_entry(root, *item) for item in new], schema=_SCHEMA)
    parts = [read] if known is None else [known.take(pa.array(kept, pa.int64())), read]
    joined = pa.concat_tables(parts).sort_by("folder")
    return joined.replace_schema_metadata(_SCHEMA.metadata)


def _entry(root: Path, name: str, stamp: str) -> dict[str, Any]:
    values: dict[str, Any] = {"problem": ""}
    try:
        result = RunDir(root / name).load()
        # Removed since it was listed: as unreadable this once, gone from the next list.
        values |= {"problem": "removed"} if result is None else row(result)
    except FskdError as error:
        values["problem"] = str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        values["problem"] = f"not a result file ({type(error).__name__}: {error})"
    return values | {"folder": name, "stamp": stamp}


def _tidied(root: Path, table: pa.Table, names: Mapping[str, str] | None) -> pd.DataFrame:
    problems = table["problem"].to_pylist()
    folders = table["folder"].to_pylist()
    bad = tuple(f for f, problem in zip(folders, problems, strict=True) if problem)
    good = [i for i, problem in enumerate(problems) if not problem]
    if bad:
        table = table.take(pa.array(good, pa.int64()))
        text = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        warnings.warn(f"{root}: no readable result in {text}; left out", stacklevel=3)
    made = {}
    for name, kind in COLUMNS.items():
        if name in _STORED:
            made[name] = table[name].to_pandas(integer_object_nulls=True).astype(kind)
        else:
            made[name] = pd.Series([""] * len(good), dtype=kind)
    frame = pd.DataFrame(made)
    frame["path"] = pd.Series([os.path.join(root, folders[i]) for i in good], dtype=TEXT)
    frame = labelled(frame, names)
    frame.attrs["unreadable"] = [str(root / name) for name in bad]
    return frame


def library_versions(table: pd.DataFrame) -> dict[str, list[str]]:
    """Library -> versions that the runs were made with."""
    found: dict[str, set[str]] = {}
    for text in table["versions"].unique():
        for library, version in json.loads(text or "{}").items():
            found.setdefault(library, set()).add(version)
    return {library: sorted(found[library]) for library in sorted(found)}
