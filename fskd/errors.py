"""Errors that a user can act on: one line, the setting, the value and what is accepted."""

from collections.abc import Iterable
from difflib import get_close_matches


class FskdError(Exception):
    """Any failure caused by input; the command line prints it as one line and exits with 2."""


class SettingError(FskdError, ValueError):
    """A setting has a value that is not accepted.

    Args:
        setting: Dotted name of the setting, such as ``data.fraction``.
        value: What was given.
        accepted: What would be accepted, as a phrase.

    Example:
        >>> print(SettingError("data.fraction", 1.5, "a number in (0, 1]"))
        data.fraction: 1.5 is not accepted; expected a number in (0, 1]
    """

    def __init__(self, setting: str, value: object, accepted: str) -> None:
        self.setting, self.value, self.accepted = setting, value, accepted
        super().__init__(f"{setting}: {value} is not accepted; expected {accepted}")


class DataError(FskdError, ValueError):
    """Data on disk are missing, damaged or not what the settings ask for."""


class BusyError(FskdError):
    """Another process is making the same run."""


class TrainingError(FskdError, RuntimeError):
    """Training cannot go on, for example because a loss is not finite."""


class DoubtWarning(UserWarning):
    """Data or a teacher are probably not what they are taken for."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Phrase that lists the known names, the nearest one first.

    Example:
        >>> suggest("kdpluss", ["ce", "kd", "kdplus"])
        "'kdplus' (nearest); known: ce, kd, kdplus"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names)}"
    return f"'{near[0]}' (nearest); {listing}" if near else f"one of the {listing}"
