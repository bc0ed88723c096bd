"""Means, intervals, paired differences and tests for a handful of seeds.

Randomness is an argument: every function that resamples takes a seed or a generator.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rng = int | np.random.Generator
How = Literal["t", "bca", "percentile"]

MAX_EXACT = 20
"""Most pairs whose sign patterns are all enumerated (2**20)."""


class Interval(NamedTuple):
    """Confidence interval of a mean, NaN if there is none; ``how`` says what was done."""

    low: float
    high: float
    how: str


class Spread(NamedTuple):
    """Mean, sample standard deviation (0 for one value) and number of values."""

    mean: float
    std: float
    n: int


class Summary(NamedTuple):
    """Mean, sample standard deviation (NaN for one value), number of values and interval."""

    mean: float
    std: float
    n: int
    low: float
    high: float
    how: str


class SignFlip(NamedTuple):
    """Two-sided p-value, the smallest that this many pairs allow, and how it was found."""

    p: float
    smallest: float
    how: str


class Gain(NamedTuple):
    """Mean difference of matched values and its standard error (NaN for one pair)."""

    mean: float
    error: float
    n: int


class Difference(NamedTuple):
    """A gain with its interval and sign-flip test."""

    mean: float
    error: float
    n: int
    low: float
    high: float
    how: str
    p: float
    smallest_p: float
    test: str


def spread(values: ArrayLike) -> Spread:
    """Mean and spread.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, std=1.4142135623730951, n=2)
    """
    x = _finite(values)
    return Spread(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0, len(x))


def half_width(values: ArrayLike, level: float = 0.95) -> float | None:
    """Half the width of the mean's t-interval; None for one value.

    Example:
        >>> round(half_width([1.0, 3.0]), 2)
        12.71
    """
    _, std, n = spread(values)
    if n < 2:
        return None
    from scipy.special import stdtrit  # lighter than scipy.stats, and only where it is needed

    return float(stdtrit(n - 1, (1 + level) / 2) * std / np.sqrt(n))


def interval(
    values: ArrayLike, how: How = "t", *, level: float = 0.95, resamples: int = 9999, seed: Rng = 0
) -> Interval:
    """Confidence interval of the mean of a few values.

    ``t`` is the default: with the 3 to 10 seeds that are usual, a bootstrap interval is too
    narrow. Of intervals that claim 95 %, on normal values (20,000 repeats), the percentile
    bootstrap covers 75 % with three values, 84 % with five and 90 % with ten; BCa 72, 84 and 91 %.

    - one value: no interval (NaN, ``how`` is ``one value``);
    - equal values: the value itself (``how`` is ``equal values``);
    - two or more: Student's t, or ``scipy.stats.bootstrap`` (Efron, JASA 1987), whose BCa
      interval is replaced by the percentile interval, and ``how`` says so, where it is undefined.

    Args:
        values: (n,), n >= 1.
        how: ``t``, ``bca`` or ``percentile``.
        level: In (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Without values, or with one that is not finite.
    """
    x = _finite(values)
    half = half_width(x, level)
    if half is None:
        return Interval(np.nan, np.nan, "one value")
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]), "equal values")
    if how == "t":
        return Interval(float(x.mean() - half), float(x.mean() + half), "t")
    from scipy import stats  # takes a second, so not before it is needed

    method: How
    for method in (how, "percentile"):
        found = stats.bootstrap(
            (x,), np.mean, n_resamples=resamples, confidence_level=level, method=method,
            random_state=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        if np.isfinite(found).all():
            break
    return Interval(float(found.low), float(found.high), method)


def summarise(
    values: ArrayLike, how: How = "t", *, level: float = 0.95, resamples: int = 9999, seed: Rng = 0
) -> Summary:
    """Mean, spread and interval of values over seeds; see ``interval``.

    Example:
        >>> s = summarise([0.80, 0.82, 0.84])
        >>> f"{s.mean:.3f} +- {s.std:.3f} [{s.low:.3f}, {s.high:.3f}]"
        '0.820 +- 0.020 [0.770, 0.870]'
    """
    mean, std, n = spread(values)
    low, high, done = interval(values, how, level=level, resamples=resamples, seed=seed)
    return Summary(mean, std if n > 1 else np.nan, n, low, high, done)


def gain(ours: ArrayLike, baseline: ArrayLike) -> Gain:
    """``ours`` minus ``baseline`` over matched runs; the order of both is that of the pairs.

    Raises:
        ValueError: If the lengths differ or there is no pair.
    """
    mean, std, n = spread(_differences(ours, baseline))
    return Gain(mean, float(std / np.sqrt(n)) if n > 1 else np.nan, n)


def paired(
    ours: ArrayLike,
    baseline: ArrayLike,
    how: How = "t",
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: Rng = 0,
) -> Difference:
    """A ``gain`` with its ``interval`` and the ``sign_flip`` test of its differences."""
    d = _differences(ours, baseline)
    bounds = interval(d, how, level=level, resamples=resamples, seed=seed)
    return Difference(*gain(ours, baseline), *bounds, *sign_flip(d, seed=seed))


def _differences(ours: ArrayLike, baseline: ArrayLike) -> Floats:
    a, b = _finite(ours), _finite(baseline)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    return a - b


def sign_flip(differences: ArrayLike, *, patterns: int = 100_000, seed: Rng = 0) -> SignFlip:
    """Two-sided randomisation test of paired differences (Fisher, The Design of Experiments, 1935).

    If the arms were alike, every difference could as well have had the other sign. The p-value is
    the share of sign patterns whose sum is at least as far from 0 as that observed. All 2**n
    patterns are counted up to ``MAX_EXACT`` pairs; beyond, ``patterns`` random ones are drawn and
    p = (1 + hits) / (1 + patterns). The smallest p is 2 / 2**n: four seeds can never reach 0.05.

    Example:
        >>> sign_flip([0.01, 0.02, 0.03, 0.04, 0.05])
        SignFlip(p=0.0625, smallest=0.0625, how='exact')
    """
    d = _finite(differences)
    # A sum that is equal but for rounding counts as equal.
    reach = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    if len(d) <= MAX_EXACT:
        sums = d[:1]  # the sign of the first is fixed: patterns come in mirrored pairs
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(float(np.mean(np.abs(sums) >= reach)), 2.0 ** (1 - len(d)), "exact")
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, patterns, 10_000):
        signs = rng.integers(0, 2, size=(min(10_000, patterns - start), len(d))) * 2 - 1
        hits += int(np.count_nonzero(np.abs(signs @ d) >= reach))
    return SignFlip((1 + hits) / (1 + patterns), 1 / (1 + patterns), f"{patterns} random patterns")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of comparisons (Holm, Scand. J. Statist. 6, 1979).

    The j-th smallest of m is multiplied by m - j + 1; none is smaller than one before it. NaN
    counts as no comparison and stays NaN.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted.tolist()


def _finite(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"needs one or more finite values in a row, not {values!r}")
    return x
