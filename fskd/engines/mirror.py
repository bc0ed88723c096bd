"""Finished runs in an object store, or in any other place that fsspec knows.

There, as here, a run is finished if its ``result.json`` is there, which comes last. A mirror has no
locks: where machines share nothing else, two sweeps of one protocol may make a run twice, and the
first to arrive stays.
"""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fskd.errors import SettingError
from fskd.results.store import RunDir, check_writable, replacing


class Mirror:
    """Finished runs elsewhere.

    Args:
        url: Of a folder, such as ``s3://bucket/runs``.

    Raises:
        SettingError: If fsspec does not know such places or it cannot be read.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
            self._fs, root = found
            self._root = root.rstrip("/")
            self._fs.exists(self._root)
        except Exception as error:  # every store has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            accepted = f"a folder that fsspec can open ({reason})"
            raise SettingError("--mirror", f"'{url}'", accepted) from None

    def keep(self, folder: Path) -> None:
        """Copies a finished run there, unless it is there."""
        place = f"{self._root}/{folder.name}"
        last = RunDir(folder).result.name
        if not (folder / last).exists() or self._fs.exists(f"{place}/{last}"):
            return
        self._fs.makedirs(place, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != last and not path.name.startswith("."):
                self._fs.put_file(str(path), f"{place}/{path.name}")
        # At one stroke, or a reader could see half of it.
        self._fs.put_file(str(folder / last), f"{place}/.{last}")
        self._fs.mv(f"{place}/.{last}", f"{place}/{last}")

    def fetch(self, folder: Path) -> None:
        """Copies a finished run from there, unless it is here or somebody here makes it."""
        place = f"{self._root}/{folder.name}"
        last = RunDir(folder).result.name
        if (folder / last).exists() or not self._fs.exists(f"{place}/{last}"):
            return
        check_writable(folder)
        try:
            with FileLock(folder / ".lock", timeout=0):
                paths = (str(path) for path in self._fs.find(place, maxdepth=1))
                names = {path.rpartition("/")[2] for path in paths} - {f".{last}", last}
                for name in [*sorted(names), last]:
                    with replacing(folder / name) as temporary:
                        self._fs.get_file(f"{place}/{name}", str(temporary))
        except Timeout:
            return
