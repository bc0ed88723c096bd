"""What is kept of a protocol beside the results, under its name in the folder of all runs.

``<protocol>.arms.json`` maps keys to names of arms, which are no part of the keys: a run may have
other names in other protocols. A sweep also leaves ``<protocol>.yaml``, a copy of the file, and
``<protocol>.expected.json``, every run that it stands for, so that a report knows what is missing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from fskd.errors import FskdError
from fskd.results.store import write_text

SUFFIX = ".arms.json"
EXPECTED = ".expected.json"


def save_names(out: Path, protocol: str, names: Mapping[str, str]) -> None:
    """Adds names to those that are known of a protocol's runs.

    Args:
        out: Folder of all runs.
        protocol: Name of the protocol.
        names: Key -> name of the arm.
    """
    with _alone(out, protocol):
        known = load_names(out, protocol)
        if known != (merged := {**known, **names}):
            write_text(_path(out, protocol), json.dumps(merged, indent=2) + "\n")


def save_expected(
    out: Path,
    protocol: str,
    text: str,
    overrides: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, str]],
) -> None:
    """Keeps a protocol's file and all of the runs that it stands for.

    Args:
        out: Folder of all runs.
        protocol: Name of the protocol.
        text: Its file.
        overrides: Settings given beside the file.
        runs: Key -> ``arm`` and ``folder`` of every run.
    """
    record = {"overrides": overrides, "runs": runs}
    with _alone(out, protocol):
        write_text(out / f"{protocol}.yaml", text)
        write_text(out / f"{protocol}{EXPECTED}", json.dumps(record, indent=2) + "\n")


def load_expected(out: Path, protocol: str) -> dict[str, dict[str, str]]:
    """Key -> ``arm`` and ``folder`` of every run that the last sweep of a protocol stood for.

    Raises:
        FskdError: If the file holds something else.
    """
    path = out / f"{protocol}{EXPECTED}"
    if not path.exists():
        return {}
    try:
        runs = {
            str(key): {name: str(run[name]) for name in ("arm", "folder")}
            for key, run in json.loads(path.read_text(encoding="utf-8"))["runs"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FskdError(f"{path}: cannot be read ({error}); it may be deleted") from None
    return runs


@contextmanager
def _alone(out: Path, protocol: str) -> Iterator[None]:
    """One process at a time; removes temporary files that a killed one left."""
    with FileLock(out / ".lock"):
        for path in out.glob(f".{protocol}.*.tmp"):
            path.unlink(missing_ok=True)
        yield


def load_names(out: Path, protocol: str) -> dict[str, str]:
    """Key -> name of the arm, of all runs made for a protocol so far.

    Raises:
        FskdError: If the file holds something else.
    """
    path = _path(out, protocol)
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError("not a mapping of keys to names")
    except (OSError, ValueError) as error:
        raise FskdError(f"{path}: cannot be read ({error}); it may be deleted") from None
    return names


def _path(out: Path, protocol: str) -> Path:
    return out / f"{protocol}{SUFFIX}"
