"""Split files: a data set's examples in the order a sampler gave, so that everybody has the same.

A file is an ``.npz`` that ``np.load`` opens: ``order``, uint32 (N,), and ``about``, JSON text that
says what the order belongs to. The comment at the end of the archive is the sha256 of all bytes
before it, so a changed byte shows without any other file. The bytes depend on the contents alone:
times are fixed, and bzip2 has one implementation (zlib has several, and deflate is larger here).
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fskd.data.splits import order_hash
from fskd.errors import DataError
from fskd.results.store import replacing
from fskd.types import Ranking

FORMAT = 1
MAX_BYTES = 1 << 26  # on disk: 16 million examples
MAX_UNPACKED = 1 << 27
_MEMBERS = ("order.npy", "about.npy")
_HEX = re.compile(r"[0-9a-f]{64}")
_TYPES = {"dataset": str, "fingerprint": str, "sampler": str, "settings": dict, "seed": int}


def file_name(
    dataset: str, sampler: str, settings: Mapping[str, Any], defaults: Mapping[str, Any], seed: int
) -> str:
    """Place of an order within a folder of split files.

    Example:
        >>> file_name("digits", "stratified", {}, {}, 3)
        'digits/stratified-seed3.npz'
        >>> file_name("digits", "longtail", {"ratio": 50}, {"ratio": 100}, 3)
        'digits/longtail-f6d3ab23-seed3.npz'
    """
    suffix = "" if dict(settings) == dict(defaults) else f"-{_short_hash(settings)}"
    return f"{dataset}/{sampler}{suffix}-seed{seed}.npz"


def _short_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(settings).encode()).hexdigest()[:8]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(ranking: Ranking) -> bytes:
    """The bytes of a split file; equal rankings give equal bytes."""
    about = {
        "format": FORMAT,
        "dataset": ranking.dataset,
        "fingerprint": ranking.fingerprint,
        "sampler": ranking.sampler,
        "settings": dict(ranking.settings),
        "seed": ranking.seed,
        "teacher": None if ranking.teacher is None else dict(ranking.teacher),
    }
    arrays = (ranking.order.numpy().astype("<u4"), np.array(_json(about), dtype="<U"))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in zip(_MEMBERS, arrays, strict=True):
            part = io.BytesIO()
            np.lib.format.write_array(part, array, (1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(name)  # dated 1980
            info.create_system = 3  # the same on every system
            archive.writestr(info, part.getvalue(), zipfile.ZIP_BZIP2, 9)
        archive.comment = b"0" * 64
    body = stream.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


@lru_cache(maxsize=8)  # many runs ask for few files
def decode(data: bytes, where: str) -> Ranking:
    """The ranking in the bytes of a split file, every property of it checked.

    Args:
        data: All bytes of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: One line that says what is wrong.
    """
    body, digest = data[:-64], data[-64:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DataError(f"{where}: damaged, or not a split file (its bytes do not match its hash)")
    try:
        order, text = _arrays(data)
    except Exception as error:  # zipfile and NumPy raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a split file ({reason})") from None
    about = _about(text, where)
    _check_order(order, where)
    ranks = torch.from_numpy(order.astype(np.int64))
    return Ranking(
        about["dataset"], about["sampler"], about["settings"], about["seed"], ranks,
        about["fingerprint"], order_hash(ranks), about["teacher"], where,
    )  # fmt: skip


def _arrays(data: bytes) -> tuple[np.ndarray, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if [member.filename for member in members] != list(_MEMBERS):
            raise ValueError(f"it does not hold {' and '.join(_MEMBERS)}")
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise ValueError(f"larger than {MAX_UNPACKED} bytes unpacked")
        order, about = (
            np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
            for member in members
        )
    if about.dtype.kind != "U" or about.shape != ():
        raise ValueError("'about' is no text")
    return order, about.item()


def _about(text: str, where: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: 'about' is not JSON") from None
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise DataError(f"{where}: format {found}, but this version of fskd reads format {FORMAT}")
    teacher = about.get("teacher")
    named = isinstance(teacher, dict) and all(isinstance(v, str) for v in teacher.values())
    if (
        any(type(about.get(name)) is not kind for name, kind in _TYPES.items())
        or not (teacher is None or named)
        or about["seed"] < 0
        or not _HEX.fullmatch(about["fingerprint"])
    ):
        raise DataError(f"{where}: 'about' does not say which data and sampler the order is from")
    about["teacher"] = teacher
    return dict(about)


def _check_order(order: np.ndarray, where: str) -> None:
    if order.dtype != np.dtype("<u4") or order.ndim != 1 or len(order) == 0:
        raise DataError(f"{where}: the order is {order.dtype} {order.shape}, not uint32 (N,)")
    n = len(order)
    if int(order.max()) >= n:
        raise DataError(f"{where}: index {order.max()} is outside 0..{n - 1}")
    counts = np.bincount(order, minlength=n)
    if counts.max() > 1:
        raise DataError(f"{where}: index {counts.argmax()} occurs {counts.max()} times")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of bounded size."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES} bytes, which no split file is")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read(path: Path) -> Ranking:
    """The ranking in a split file; ``source`` is the file's name."""
    return decode(read_bytes(path), path.name)


def write(path: Path, ranking: Ranking) -> None:
    """Writes a split file at one stroke."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(encode(ranking))


def check_data(ranking: Ranking, fingerprint: str, n: int, hint: str = "") -> None:
    """DataError unless an order belongs to the images with this fingerprint."""
    if ranking.fingerprint != fingerprint:
        raise DataError(
            f"{ranking.source}: made for data with fingerprint {ranking.fingerprint}, but the data"
            f" here have {fingerprint}{hint}"
        )
    if len(ranking.order) != n:
        raise DataError(f"{ranking.source}: orders {len(ranking.order)} examples of {n}")
