"""Which path is fastest for a device and shape, from a small table of measurements.

The shipped table was measured by ``python -m fskd.benchmark losses``; ``--tune`` measures anew on
this machine and keeps the result in the user's cache, where it wins over the shipped one.
"""

import json
import math
import os
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

Route = Literal["reference", "eager", "compiled"]

# Compiling takes seconds, so it has to be earned back within this many calls, a short training's.
CALLS = 3_000
# A shape that is further than this factor from all measured ones, in rows or classes, is unknown.
REACH = 8.0


class Entry(NamedTuple):
    """One measured shape; times in microseconds a call, forward and backward.

    Attributes:
        device: Device type.
        dtype: Precision of the logits, such as ``float32``.
        rows: R.
        classes: C.
        reference: Time of the plain composition.
        eager: Time of the fused eager path.
        compiled: Time of the compiled path; infinite where there is none.
        compile_seconds: What compiling took.
    """

    device: str
    dtype: str
    rows: int
    classes: int
    reference: float
    eager: float
    compiled: float
    compile_seconds: float

    def distance(self, rows: int, classes: int) -> float:
        """Largest factor between this shape and another, as a logarithm."""
        ratios = (rows / self.rows, classes / self.classes)
        return max(abs(math.log(ratio)) for ratio in ratios)

    @property
    def best(self) -> Route:
        """The fastest path, compiling included."""
        eager: Route = "eager" if self.eager <= self.reference else "reference"
        uncompiled = min(self.eager, self.reference)
        earned = (uncompiled - self.compiled) * 1e-6 * CALLS
        return "compiled" if earned > self.compile_seconds else eager


def user_table() -> Path:
    """Where ``--tune`` keeps its measurements; FSKD_CACHE overrides the folder."""
    cache = os.environ.get("FSKD_CACHE")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "fskd" / "losses.json"
    return Path(cache) / "losses.json"


def read_table(text: str) -> list[Entry]:
    """Entries from JSON; an empty list if it is not such a table."""
    try:
        return [_entry(**row) for row in json.loads(text)["entries"]]
    except (ValueError, TypeError, KeyError):
        return []


def _entry(device: str, dtype: str, rows: int, classes: int, **times: Any) -> Entry:
    """An entry whose numbers are numbers."""
    if min(rows, classes) < 1:
        raise ValueError(f"rows {rows}, classes {classes}; expected at least 1")
    seconds = {name: float(value) for name, value in times.items()}
    return Entry(device, dtype, rows, classes, **seconds)


@lru_cache(maxsize=1)
def table() -> list[Entry]:
    """Own measurements first, then the shipped ones."""
    entries: list[Entry] = []
    with suppress(OSError):  # there is none, or it is not ours to read
        entries += read_table(user_table().read_text(encoding="utf-8", errors="replace"))
    shipped = resources.files("fskd.losses") / "measured.json"
    tuned = {(entry.device, entry.dtype) for entry in entries}
    measured = read_table(shipped.read_text(encoding="utf-8"))
    return entries + [entry for entry in measured if (entry.device, entry.dtype) not in tuned]


@lru_cache(maxsize=256)
def best_path(device: str, dtype: str, rows: int, classes: int) -> Route:
    """The fastest path by the nearest measured shape; ``eager`` where nothing near was measured.

    Args:
        device: Device type.
        dtype: Such as ``float32``.
        rows: R.
        classes: C.
    """
    near = [entry for entry in table() if (entry.device, entry.dtype) == (device, dtype)]
    if not near:
        return "eager"
    entry = min(near, key=lambda entry: entry.distance(rows, classes))
    return entry.best if entry.distance(rows, classes) <= math.log(REACH) else "eager"


def forget() -> None:
    """Reads the tables anew at the next call."""
    table.cache_clear()
    best_path.cache_clear()
