"""Where split files lie, and the manifest that says what every file of a folder must be."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from fskd.data.split_files import decode, read_bytes, write
from fskd.errors import DataError
from fskd.results.store import check_writable, write_text
from fskd.types import Ranking

NAME = "MANIFEST.json"
FORMAT = 1
MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Entry:
    """What a manifest knows about one file.

    Attributes:
        bytes: Size.
        sha256: Hash of the file's bytes.
        order_sha256: Hash of the order in it, as results carry it (``split_sha256``).
        fingerprint: Of the training images that it belongs to.
        command: What made it.
    """

    bytes: int
    sha256: str
    order_sha256: str
    fingerprint: str
    command: str


def shipped() -> Path:
    """The folder of split files that comes with fskd: the checkout's, or the installed package's.

    Example:
        >>> (shipped() / NAME).exists()
        True
    """
    package = Path(__file__).parents[1]
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "data_splits").is_dir():
        return checkout / "data_splits"
    return package / "_splits"


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Entries of a folder's manifest by file name; none if there is no manifest.

    Raises:
        DataError: If it cannot be read as one.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return dict(_entries(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a manifest of split files ({reason})") from None


@lru_cache(maxsize=4)  # many runs ask for few folders
def _entries(text: str) -> dict[str, Entry]:
    raw = json.loads(text)
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']}, this version of fskd reads {FORMAT}")
    entries = {str(name): Entry(**entry) for name, entry in raw["files"].items()}
    kinds = {"bytes": int}
    for entry in entries.values():
        for name, value in asdict(entry).items():
            if type(value) is not kinds.get(name, str):
                raise ValueError(f"'{name}' is {value!r}")
    return entries


def load_split(folder: Path, name: str) -> Ranking | None:
    """The ranking in a file of a folder, checked against the manifest; None if there is no file.

    Args:
        folder: Folder of split files.
        name: Place of the file in it, such as ``digits/stratified-seed0.npz``.

    Raises:
        DataError: If the file is damaged, or another one than the manifest lists.
    """
    path = folder / name
    if not path.is_file():
        return None
    data = read_bytes(path)
    entry = read_manifest(folder).get(name)
    if entry is not None:
        check_entry(data, entry, name)
    return decode(data, name)


def read_listed(path: Path) -> Ranking:
    """The ranking in a file, checked against the manifest in the folder above, if there is one."""
    folder, name = place_of(path)
    found = load_split(folder, name)
    if found is None:
        raise DataError(f"{path}: there is no such file")
    return found


def place_of(path: Path) -> tuple[Path, str]:
    """Folder of split files that a file lies in, and its name there.

    Example:
        >>> place_of(Path("/splits/digits/stratified-seed0.npz"))[1]
        'digits/stratified-seed0.npz'
    """
    path = path.resolve()
    return path.parent.parent, f"{path.parent.name}/{path.name}"


def check_entry(data: bytes, entry: Entry, name: str) -> None:
    """DataError unless bytes are those that the manifest lists."""
    if len(data) != entry.bytes:
        raise DataError(f"{name}: {len(data)} bytes, but {NAME} lists {entry.bytes}")
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise DataError(f"{name}: sha256 {found}, but {NAME} lists {entry.sha256}")


def check_order(ranking: Ranking, folder: Path, name: str) -> None:
    """DataError if a manifest knows another order of the same data under this name."""
    entry = read_manifest(folder).get(name)
    if entry is None or entry.fingerprint != ranking.fingerprint:
        return
    if entry.order_sha256 != ranking.sha256:
        raise DataError(
            f"{name}: the order here has sha256 {ranking.sha256}, but {folder / NAME} lists"
            f" {entry.order_sha256}"
        )


def save_split(folder: Path, name: str, ranking: Ranking, command: str, force: bool) -> bool:
    """Writes a file and lists it; a file that is already so is left alone.

    Args:
        folder: Folder of split files, made if absent.
        name: Place of the file in it.
        ranking: What it holds.
        command: What made it.
        force: Replace a file that holds something else.

    Returns:
        Whether anything was written.

    Raises:
        DataError: If there is another file of this name and it may not be replaced.
    """
    check_writable(folder, "--out")
    path = folder / name
    with FileLock(folder / ".lock"):
        if path.exists() and not force:
            old = decode(read_bytes(path), name)
            if (old.sha256, old.fingerprint) != (ranking.sha256, ranking.fingerprint):
                raise DataError(f"{path}: exists and holds another order; --force replaces it")
        write(path, ranking)
        data = read_bytes(path)
        entry = Entry(
            len(data), hashlib.sha256(data).hexdigest(), ranking.sha256, ranking.fingerprint,
            command,
        )  # fmt: skip
        entries = read_manifest(folder)
        if entries.get(name) == entry:
            return False
        _write_manifest(folder, entries | {name: entry})
    return True


def _write_manifest(folder: Path, entries: dict[str, Entry]) -> None:
    files = {name: asdict(entries[name]) for name in sorted(entries, key=_natural)}
    write_text(folder / NAME, json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")


def _natural(name: str) -> tuple[str, int]:
    """Sorts seed 10 after seed 9."""
    stem, _, seed = name.removesuffix(".npz").rpartition("-seed")
    return (stem, int(seed)) if seed.isdecimal() else (name, 0)


def split_names(folder: Path) -> Iterable[str]:
    """Names of all split files of a folder, on disk or in the manifest, sorted."""
    there = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.npz")}
    return sorted(there | set(read_manifest(folder)), key=_natural)
