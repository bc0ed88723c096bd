"""Lists of examples that others chose -> a full order that begins with them."""

import csv
import json
from pathlib import Path

import numpy as np

from fskd.data.samplers.stratified import Stratified
from fskd.errors import DataError
from fskd.seeding import numpy_generator
from fskd.types import Pool

MAX_BYTES = 1 << 27
# Names under which index lists are kept: ours, FixMatch's label files, and common ones.
KEYS = ("indices", "label", "index", "idx")


def read_indices(path: Path) -> np.ndarray:
    """Indices in a file, int64 (n,), in their order.

    Args:
        path: ``.npy`` (such as USB's ``lb_labels..._idx.npy``); ``.json``, a list or an object
            with a list under one of ``KEYS`` (FixMatch: ``label``); ``.csv`` with a column of that
            name, or without header; otherwise text with whitespace or commas between numbers.

    Raises:
        DataError: If it cannot be read or holds anything but whole numbers.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding="utf-8-sig")
            readers = {".json": _from_json, ".csv": _from_csv}
            found = np.array(readers.get(path.suffix, _from_text)(text))
        if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu":
            raise ValueError(f"{found.dtype} {found.shape} is no list of whole numbers")
        if int(found.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{found.max()} is no index")
    except (OSError, ValueError, TypeError, EOFError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: no list of indices ({reason})") from None
    return found.astype(np.int64)


def _from_json(text: str) -> list[int]:
    found = json.loads(text)
    if isinstance(found, dict):
        name = next((key for key in KEYS if key in found), None)
        if name is None:
            raise ValueError(f"expected a list, or an object with one of {', '.join(KEYS)}")
        found = found[name]
    if not isinstance(found, list) or any(type(value) is not int for value in found):
        raise ValueError("expected a list of whole numbers")
    return found


def _from_csv(text: str) -> list[int]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    head = [cell.strip() for cell in rows[0]] if rows else []
    column = next((head.index(key) for key in KEYS if key in head), None)
    if column is not None:
        return [int(row[column]) if column < len(row) else int("") for row in rows[1:]]
    if any(len(row) > 1 for row in rows[1:]):
        raise ValueError(f"several columns, none of which is named {', '.join(KEYS)}")
    return [int(cell) for row in rows for cell in row]


def _from_text(text: str) -> list[int]:
    return [int(word) for word in text.replace(",", " ").split()]


def complete(given: np.ndarray, pool: Pool, seed: int, where: str) -> np.ndarray:
    """A permutation of 0..N-1: the given examples first, the others in stratified order.

    Args:
        given: Indices, int64 (n,).
        pool: Labels of all N examples.
        seed: Split seed of the stratified order.
        where: Name of the list, for messages.

    Raises:
        DataError: If an index is outside 0..N-1 or occurs twice.
    """
    n = len(pool.targets)
    outside = given[(given < 0) | (given >= n)]
    if len(outside):
        raise DataError(f"{where}: index {outside[0]} is outside 0..{n - 1}")
    counts = np.bincount(given, minlength=n)
    if counts.max() > 1:
        raise DataError(f"{where}: index {counts.argmax()} occurs {counts.max()} times")
    others = Stratified().rank(pool, numpy_generator(seed, "split"))
    return np.concatenate([given, others[counts[others] == 0]])
