"""Accuracy against the number of examples: area under the curve, and examples needed.

Curves are read on a logarithmic axis, as learning curves are drawn: between two sizes the accuracy
is linear in log n. Nothing is said outside the sizes that were run.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fskd.results.stats import Floats, Rng

Mark = Literal["", "<", ">"]


class Examples(NamedTuple):
    """A number of examples, or (``mark``) only that it lies below or above ``value``.

    Example:
        >>> str(Examples(412.0, "")), str(Examples(1200.0, ">"))
        ('412', '> 1200')
    """

    value: float
    mark: Mark

    def __str__(self) -> str:
        return f"{self.mark} {self.value:.0f}".strip()


class Equivalence(NamedTuple):
    """Examples that the baseline needs, bounds of the interval (None for one seed), seeds."""

    needed: Examples
    low: Examples | None
    high: Examples | None
    n: int


def log_area(sizes: ArrayLike, accuracy: ArrayLike) -> float:
    """Area under accuracy over log n, divided by the range of log n: a mean accuracy.

    The trapezoid rule, so the curve is piecewise linear in log n.

    Args:
        sizes: (m,) numbers of examples, m >= 2, increasing.
        accuracy: (m,) values.

    Raises:
        ValueError: With fewer than two sizes, or sizes that are not increasing and positive.

    Example:
        >>> round(log_area([10, 100, 1000], [0.2, 0.6, 0.8]), 12)
        0.55
    """
    x, y = np.log(_sizes(sizes, 2)), np.asarray(accuracy, dtype=np.float64)
    if y.shape != x.shape:
        raise ValueError(f"{len(x)} sizes but values of shape {y.shape}")
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (x[-1] - x[0]))


def isotonic(values: Floats) -> Floats:
    """The non-decreasing sequences nearest to the rows of ``values`` in squared distance.

    By the max-min formula (Robertson, Wright and Dykstra, Order Restricted Statistical Inference,
    1988, section 1.4), which treats many rows at once: the i-th value is the largest, over starts
    j <= i, of the smallest, over ends k >= i, mean of the values j..k.

    Args:
        values: (rows, m).

    Returns:
        (rows, m).
    """
    _, m = values.shape
    sums = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
    best = np.full(values.shape, -np.inf)
    for j in range(m):
        means = (sums[:, j + 1 :] - sums[:, j : j + 1]) / np.arange(1, m - j + 1)
        smallest = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        best[:, j:] = np.maximum(best[:, j:], smallest)
    return best


def examples_needed(sizes: ArrayLike, accuracy: ArrayLike, target: float) -> Examples:
    """The smallest n at which a curve of accuracies reaches ``target``.

    The curve is made monotone first (isotonic regression): means over few seeds dip, and a curve
    that dips has no inverse. Isotonic regression assumes no shape, such as a power law, that the
    data would have to follow; between the sizes the curve is linear in log n.

    Args:
        sizes: (m,) numbers of examples, increasing.
        accuracy: (m,) values.
        target: Accuracy to be reached.

    Returns:
        The number of examples, or ``> largest`` if the curve never reaches the target, or
        ``< smallest`` if it is above the target from the start.

    Example:
        >>> str(examples_needed([10, 100, 1000], [0.2, 0.6, 0.8], 0.7))
        '316'
        >>> str(examples_needed([10, 100, 1000], [0.2, 0.6, 0.8], 0.81))
        '> 1000'
    """
    n = _sizes(sizes, 1)
    found = _invert(n, np.asarray(accuracy, dtype=np.float64)[None], np.array([target]))
    return _marked(n, float(found[0]))


def equivalence(
    sizes: ArrayLike,
    baseline: ArrayLike,
    ours: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: Rng = 0,
) -> Equivalence:
    """Examples that the baseline's mean curve needs to reach the mean accuracy of ``ours``.

    The interval is a percentile bootstrap over seeds; a drawn seed brings the baseline's whole
    curve and our value, so pairs and nested subsets stay together. With the usual few seeds it is
    too narrow (see ``stats.interval``). A bound outside the sizes is marked, not extrapolated.

    Args:
        sizes: (m,) numbers of examples, increasing.
        baseline: (seeds, m) accuracies of the baseline.
        ours: (seeds,) accuracies at one size, in the same order of seeds.
        level: In (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the shapes do not fit or there is no seed.
    """
    n, curves = _sizes(sizes, 1), np.asarray(baseline, dtype=np.float64)
    values = np.asarray(ours, dtype=np.float64)
    if not len(values) or curves.shape != (len(values), len(n)):
        raise ValueError(f"{values.shape} values do not fit curves {curves.shape}, {len(n)} sizes")
    needed = _marked(n, float(_invert(n, curves.mean(0)[None], values.mean()[None])[0]))
    if len(values) == 1:
        return Equivalence(needed, None, None, 1)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    found = np.sort(_invert(n, curves[drawn].mean(1), values[drawn].mean(1)))
    # Whole order statistics: no interpolation towards an infinite one.
    ends = [int((1 - level) / 2 * (resamples - 1)), -1 - int((1 - level) / 2 * (resamples - 1))]
    low, high = (_marked(n, float(found[end])) for end in ends)
    return Equivalence(needed, low, high, len(values))


def _invert(sizes: Floats, curves: Floats, targets: Floats) -> Floats:
    """(rows, m) curves and (rows,) targets -> (rows,) sizes, -inf below and inf above the range."""
    fitted = isotonic(curves)
    # Rounding in the mean must not put a curve's own value beyond it.
    targets = targets - 1e-12
    index = np.sum(fitted < targets[:, None], axis=1)
    inside = (index > 0) & (index < len(sizes))
    rows, right = np.arange(len(fitted))[inside], index[inside]
    y0, y1 = fitted[rows, right - 1], fitted[rows, right]
    x0, x1 = np.log(sizes)[right - 1], np.log(sizes)[right]
    found = np.where(index == 0, -np.inf, np.inf)
    found[inside] = np.exp(x0 + (targets[inside] - y0) / (y1 - y0) * (x1 - x0))
    at_start = (index == 0) & (fitted[:, 0] <= targets + 2e-12)
    found[at_start] = sizes[0]
    return found


def _marked(sizes: Floats, value: float) -> Examples:
    if np.isinf(value):
        return Examples(float(sizes[-1]), ">") if value > 0 else Examples(float(sizes[0]), "<")
    return Examples(value, "")


def _sizes(sizes: ArrayLike, least: int) -> Floats:
    n = np.asarray(sizes, dtype=np.float64)
    if n.ndim != 1 or len(n) < least or (n <= 0).any() or (np.diff(n) <= 0).any():
        raise ValueError(f"needs {least} or more positive, increasing sizes, not {sizes!r}")
    return n
