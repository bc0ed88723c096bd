"""What a folder of runs holds: results, and the runs that failed, stopped or are not there."""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fskd.errors import FskdError, SettingError, suggest
from fskd.raw import SIZE
from fskd.results.curves import missing_keys
from fskd.results.external import read_csv_results
from fskd.results.loading import load
from fskd.results.names import SUFFIX, load_names
from fskd.results.tidy import COLUMNS, combined, labelled, settings_text, teacher_keys

IMPORTED = "imported"
FAILED = "failed.json"
UNREADABLE = "result.json cannot be read"


class Trouble(NamedTuple):
    """A run without a result: its name, what is known of it, and when it failed (or "")."""

    run: str
    what: str
    time: str = ""


class Evidence(NamedTuple):
    """Everything that a report is made of.

    Attributes:
        table: The tidy table.
        failed: Runs that ended with an error.
        unfinished: Runs that were begun and have neither result nor error.
        missing: Runs that a protocol names and of which there is nothing.
        unreadable: Result files that cannot be read.
        protocols: Protocols with names for runs beside the results.
    """

    table: pd.DataFrame
    failed: list[Trouble]
    unfinished: list[Trouble]
    missing: list[Trouble]
    unreadable: list[Trouble]
    protocols: list[str]


class Expected(NamedTuple):
    """A run of a protocol, known without its data.

    Attributes:
        arm: What the protocol calls it.
        label: Beginning of its folder's name.
        config: All settings, as in a result.
    """

    arm: str
    label: str
    config: dict[str, Any]

    def settings(self) -> tuple[Any, ...]:
        """What tells the run from others."""
        data = self.config["data"]
        size = tuple(data[name] for name in SIZE)
        if size == (None, None, None):
            size = (1.0, None, None)
        seeds = (self.config["seed"], data["split_seed"])
        return settings_text(self.config), *seeds, *size


def gather(
    folder: Path,
    expected: Sequence[Expected] | None = None,
    imports: Iterable[Path] = (),
    only: Mapping[str, Sequence[str]] | None = None,
) -> Evidence:
    """Reads a folder of runs.

    Args:
        folder: ``out`` of the runs; CSV files in its folder ``imported`` are read with them.
        expected: The runs of a protocol, which alone (with their teachers) count then; by default
            all runs count, under the names that any protocol beside them has.
        imports: CSV files in our columns.
        only: Column -> values of the rows that count.

    Raises:
        FskdError: One line about a file that cannot be read, or an unknown column or value.
    """
    if not folder.is_dir():
        raise SettingError("results", folder, "a folder of run directories")
    protocols = sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))
    names: dict[str, str] = {}
    for protocol in protocols:
        names = {**load_names(folder, protocol), **names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is unreadable is part of the answer
        table = load(folder, names=names)
    unreadable = [Trouble(Path(p).name, UNREADABLE) for p in table.attrs["unreadable"]]
    failed, unfinished = _without_result(folder)
    begun = {trouble.run for trouble in (*failed, *unfinished)}
    if expected is None:
        known = {name.rpartition("-")[2] for name in begun}
        absent = [Trouble(k, names[k]) for k in missing_keys(names, table) if k not in known]
    else:
        table, absent = _of_protocol(table, expected, begun)
        labels = tuple(f"{run.label}-" for run in expected)
        failed, unfinished, unreadable = (
            [trouble for trouble in troubles if trouble.run.startswith(labels)]
            for troubles in (failed, unfinished, unreadable)
        )
    files = [*sorted((folder / IMPORTED).glob("*.csv")), *imports]
    if files:
        arms = dict(zip(table["key"], table["arm"], strict=True))
        table = combined(table, *map(read_csv_results, files), names=arms)
    if only:  # which of the missing ones it would have kept is not known
        table, absent = _filtered(table, only), []
    return Evidence(table, failed, unfinished, absent, unreadable, protocols)


def _of_protocol(
    table: pd.DataFrame, expected: Sequence[Expected], begun: Collection[str]
) -> tuple[pd.DataFrame, list[Trouble]]:
    """The rows of a protocol and of its teachers, named as in it, and its runs without a trace."""
    rows = {}
    row: Any
    for i, row in enumerate(table.itertuples(index=False)):
        size = [None if pd.isna(v) else v for v in (row.fraction, row.shots)]
        size.append(None if size != [None, None] else row.n_train)
        rows[row.settings, row.seed, row.split_seed, *size] = i
    arms, absent = {}, []
    for run in expected:
        place = rows.get(run.settings())
        if place is not None:
            arms[table["key"][place]] = run.arm
        elif not any(name.startswith(f"{run.label}-") for name in begun):
            absent.append(Trouble(run.label, run.arm))
    ours = table["key"].isin(set(arms))
    teachers = table["key"].isin(teacher_keys(table[ours]))
    return labelled(table[ours | teachers].reset_index(drop=True), arms), absent


def _filtered(table: pd.DataFrame, only: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    for column, values in only.items():
        if column not in COLUMNS:
            raise SettingError("only", column, suggest(column, COLUMNS))
        known = table[column].astype(str)
        for value in values:
            if not known.eq(value).any():
                raise SettingError("only", f"{column}={value}", suggest(value, set(known)))
        table = table[known.isin(values)].reset_index(drop=True)
    return table


def _without_result(folder: Path) -> tuple[list[Trouble], list[Trouble]]:
    """Runs that failed and runs that were begun and not finished, by name of their folder."""
    failed, unfinished = [], []
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (run / "result.json").exists():
            continue
        if (run / FAILED).exists():
            failed.append(_failure(run))
        elif (run / "config.yaml").exists():
            state = "a saved state" if (run / "state.ckpt").exists() else "no saved state"
            unfinished.append(Trouble(run.name, f"begun, not finished ({state})"))
    return failed, unfinished


def _failure(run: Path) -> Trouble:
    try:
        known = json.loads((run / FAILED).read_text(encoding="utf-8"))
        what, attempt = str(known["error"]), known.get("attempt")
        tries = f" (attempt {attempt})" if attempt is not None else ""
        return Trouble(run.name, f"{' '.join(what.split())}{tries}", str(known.get("time", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Trouble(run.name, f"{FAILED} cannot be read")


def parse_only(texts: Iterable[str]) -> dict[str, list[str]]:
    """``column=value,value`` of a command line.

    Example:
        >>> parse_only(["arm=kd,kdplus", "dataset=digits"])
        {'arm': ['kd', 'kdplus'], 'dataset': ['digits']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        column, equals, values = text.partition("=")
        if not (column and equals and values):
            raise SettingError("only", text, "COLUMN=VALUE[,VALUE], such as arm=kd,kdplus")
        found.setdefault(column, []).extend(values.split(","))
    return found


def check_rows(evidence: Evidence, folder: Path) -> None:
    """FskdError with one line about why there is nothing to show, if so."""
    table = evidence.table
    if (table["role"] == "student").any():
        return
    if len(table):
        what = f"{len(table)} runs, all of them teachers of other runs"
    elif evidence.unreadable:
        what = f"no readable result ({len(evidence.unreadable)} unreadable)"
    else:
        what = "no finished run"
    begun = len(evidence.failed) + len(evidence.unfinished)
    rest = f"; {begun} failed or unfinished" if begun else ""
    raise FskdError(f"{folder}: {what}{rest}; nothing to report")
