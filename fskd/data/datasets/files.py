"""Finding and fetching the files of a data set."""

import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from fskd.data.datasets.base import Source
from fskd.errors import DataError, SettingError


def one_line(error: BaseException) -> str:
    r"""The message of an error without line breaks, or its type where there is no message.

    Example:
        >>> one_line(ValueError("first\n  second"))
        'first second'
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_existing(candidates: Iterable[Path]) -> Path | None:
    """The first path that exists; None if none does."""
    return next((path for path in candidates if path.exists()), None)


def find_file(candidates: Iterable[Path], source: Source, what: str) -> Path:
    """The first candidate that exists.

    Args:
        candidates: Paths in order of preference.
        source: Its root is the setting that the message names.
        what: What is looked for, as the end of the phrase "a folder with ...".

    Raises:
        SettingError: None exists; the message lists what was looked for.
    """
    paths = list(candidates)
    found = first_existing(paths)
    if found is None:
        raise missing(source, what, paths)
    return found


def missing(source: Source, what: str, candidates: Iterable[Path] = ()) -> SettingError:
    """The error for files that are not there, with the places that were looked at."""
    places = ", ".join(str(path) for path in candidates)
    looked = f" (looked for {places})" if places else ""
    return SettingError("data.root", source.root, f"a folder with {what}{looked}")


def fetch(name: str, source: Source, download: Callable[[Path], object]) -> None:
    """Runs a download in silence and turns any failure into one line.

    Args:
        name: Name of the data set, used in messages.
        source: Its root is the folder to download into.
        download: Receives the folder; what it returns is ignored.

    Raises:
        SettingError: There is no folder to download into.
        DataError: The download failed, for whatever reason.
    """
    if source.root is None:
        raise SettingError("data.root", None, f"a folder to download {name} into")
    try:
        source.root.mkdir(parents=True, exist_ok=True)
        # Progress bars would end up in the output of a sweep.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            download(source.root)
    except Exception as error:
        raise DataError(f"{name}: download into {source.root} failed: {one_line(error)}") from error
