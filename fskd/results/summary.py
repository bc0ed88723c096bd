"""Comparing a handful of runs: arms, what sets them apart, and matched differences."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fskd.raw import PLACES
from fskd.results.stats import Gain, gain
from fskd.results.store import Result


class Arm(NamedTuple):
    """Runs that differ in their seeds only.

    Attributes:
        data: Name of the data set.
        n: Training examples.
        student: Student network.
        method: Method.
        generator: Generator, or ``-``.
        settings: What else sets the arm apart from others with the same method and generator.
        runs: Its results.
        name: What a protocol calls it; empty without one.
    """

    data: str
    n: str
    student: str
    method: str
    generator: str
    settings: str
    runs: list[Result]
    name: str = ""

    @property
    def setup(self) -> tuple[str, str, str]:
        """Arms of the same setup can be compared."""
        return self.data, self.n, self.student


def arms(results: Iterable[Result], names: Mapping[str, str] | None = None) -> list[Arm]:
    """Groups runs by all of their settings but the seeds, in order of appearance.

    Args:
        results: The runs.
        names: Key -> name of the arm, of runs that a protocol has names for.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(flat_settings(result.config)), []).append(result)
    found = []
    for settings, runs in groups.items():
        alike = [dict(other) for other, theirs in groups.items() if _names(theirs) == _names(runs)]
        name = (names or {}).get(runs[0].key, "")
        found.append(Arm(*_names(runs), listed(dict(settings), telling(alike)), runs, name))
    return found


def telling(alike: Sequence[Mapping[str, str]]) -> set[str]:
    """Names of the settings that some of ``alike`` have with another value, or not at all.

    Example:
        >>> telling([{"method.name": "kd", "seed": "1"}, {"method.name": "kd", "seed": "2"}])
        {'seed'}
    """
    names = dict.fromkeys(name for settings in alike for name in settings)
    return {name for name in names if len({settings.get(name) for settings in alike}) > 1}


def listed(settings: Mapping[str, str], names: Container[str]) -> str:
    """The named ones of ``settings``, as text.

    Example:
        >>> listed({"budget.steps": "800", "optim.lr": "0.2"}, {"budget.steps"})
        'budget.steps=800'
    """
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name in names)


def _names(runs: Sequence[Result]) -> tuple[str, str, str, str, str]:
    config = runs[0].config
    generator = config["generator"]
    name = "-" if generator is None else str(generator["name"])
    return config["data"]["name"], str(runs[0].n_train), config["student"], runs[0].method, name


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of all settings but seeds, places and hashes."""
    for name, value in config.items():
        if name in ("seed", "split_seed", "inputs_sha256", *PLACES):
            continue
        if isinstance(value, dict):  # an abstract Mapping takes ten times as long to recognise
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def accuracies(result: Result) -> list[float]:
    """Top-1 of every student of a run: one, or one for each episode."""
    return [result.top1] if result.episodes is None else list(result.episodes["top1"])


def matched_gain(ours: Iterable[Result], baseline: Iterable[Result]) -> Gain | None:
    """Top-1 of ``ours`` minus ``baseline``, matched by seed and split; None without a match.

    Matched runs share the subset and the initialisation, so their difference varies less than
    either of them. Episodic runs are matched episode by episode.
    """
    known = {(r.seed, r.split_sha256, r.n_train): accuracies(r) for r in baseline}
    pairs = [
        pair
        for r in ours
        if (theirs := known.get((r.seed, r.split_sha256, r.n_train))) is not None
        for pair in zip(accuracies(r), theirs, strict=True)
    ]
    return gain(*zip(*pairs, strict=True)) if pairs else None


def unequal_budgets(results: Iterable[Result]) -> bool:
    """True if runs that are compared made different numbers of updates or student rows."""
    return len({(r.steps, r.student_rows) for r in results}) > 1
