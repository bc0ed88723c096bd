"""Comparing a handful of runs: mean and spread over seeds, and paired differences."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fskd.results.store import Result


class Spread(NamedTuple):
    """Mean, sample standard deviation (0 for one value) and number of values."""

    mean: float
    std: float
    n: int


class Paired(NamedTuple):
    """Mean difference over matched runs and its standard error (NaN for one pair)."""

    mean: float
    error: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, std=1.4142135623730951, n=2)
    """
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), std, len(values))


def paired_difference(ours: Iterable[Result], baseline: Iterable[Result]) -> Paired | None:
    """Top-1 of ``ours`` minus ``baseline``, matched by seed and split; None without a match.

    Matched runs share the subset and the initialisation, so their difference varies less than
    either of them.
    """
    known = {(r.seed, r.split_sha256, r.n_train): r.top1 for r in baseline}
    differences = [
        r.top1 - known[r.seed, r.split_sha256, r.n_train]
        for r in ours
        if (r.seed, r.split_sha256, r.n_train) in known
    ]
    if not differences:
        return None
    mean, std, n = spread(differences)
    return Paired(mean, std / math.sqrt(n) if n > 1 else math.nan, n)


def unequal_budgets(results: Iterable[Result]) -> bool:
    """True if runs that are compared made different numbers of updates or student rows."""
    return len({(r.steps, r.student_rows) for r in results}) > 1
