"""Names of arms beside the results: a protocol's names for runs, which are no part of their keys.

``<out>/<protocol>.arms.json`` maps keys to names. A run may have other names in other protocols.
"""

import json
from collections.abc import Container, Mapping
from pathlib import Path

from fskd.errors import FskdError
from fskd.results.store import write_text

SUFFIX = ".arms.json"
BASELINES = ("kd", "ce")
"""Names by which an arm is taken as the one that others are compared with; the first wins."""


def usual_baseline(arms: Container[str]) -> str | None:
    """The arm that others are compared with unless one is named; None if there is none."""
    return next((name for name in BASELINES if name in arms), None)


def save_names(out: Path, protocol: str, names: Mapping[str, str]) -> None:
    """Adds names to those that are known of a protocol's runs.

    Args:
        out: Folder of all runs.
        protocol: Name of the protocol.
        names: Key -> name of the arm.
    """
    from filelock import FileLock  # late, because reports only read

    with FileLock(out / ".lock"):
        for left in out.glob(f".{protocol}{SUFFIX}.*.tmp"):  # by a killed process
            left.unlink(missing_ok=True)
        known = load_names(out, protocol)
        if known != (merged := {**known, **names}):
            write_text(_path(out, protocol), json.dumps(merged, indent=2) + "\n")


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
