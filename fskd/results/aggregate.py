"""Summaries over several tasks: interquartile mean and probability of improvement.

Agarwal, Schwarzer, Castro, Courville and Bellemare, Deep Reinforcement Learning at the Edge of the
Statistical Precipice (NeurIPS 2021, arXiv 2108.13264). As in their library rliable, intervals are
percentile intervals of a bootstrap that draws runs with replacement within every task. Two
differences: tasks may have different numbers of runs, and the given seed is what is used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fskd.results.stats import Floats, Rng


class Aggregate(NamedTuple):
    """A number over tasks and its interval, NaN if no task has two runs."""

    value: float
    low: float
    high: float


def interquartile_mean(
    scores: Sequence[ArrayLike], *, level: float = 0.95, resamples: int = 2000, seed: Rng = 0
) -> Aggregate:
    """Mean of the middle half of all runs of all tasks.

    A quarter of the runs, rounded down, is dropped at either end. Every run counts alike, so scores
    must be on one scale; accuracies of an easy and a hard data set are on the same scale in name
    only, and the easy one's may all be dropped.

    Args:
        scores: For every task the values of its runs.
        level: In (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Without tasks, or if a task has no run.

    Example:
        >>> interquartile_mean([[0.1, 0.5], [0.6, 0.9]], resamples=10).value
        0.55
    """
    tasks = _tasks(scores)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn(task, resamples, rng) for task in tasks], axis=1)
    value = _middle(np.concatenate(tasks)[None])[0]
    return _aggregate(value, _middle(drawn), tasks, level)


def probability_of_improvement(
    ours: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: Rng = 0,
) -> Aggregate:
    """How likely a run of ours is better than one of the baseline, averaged over tasks.

    Within a task it is the share of all pairs of runs in which ours is better, an equal pair
    counting half (the Mann-Whitney statistic). Seeds are not paired here.

    Args:
        ours: For every task the values of our runs.
        baseline: The same tasks.
        level: In (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Without tasks, if their numbers differ, or if a task has no run.

    Example:
        >>> probability_of_improvement([[0.5, 0.7]], [[0.6, 0.5]], resamples=10).value
        0.625
    """
    a, b = _tasks(ours), _tasks(baseline)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} tasks cannot be compared with {len(b)}")
    rng = np.random.default_rng(seed)
    value = np.mean([_better(x[None], y[None])[0] for x, y in zip(a, b, strict=True)])
    drawn = [
        _better(_drawn(x, resamples, rng), _drawn(y, resamples, rng))
        for x, y in zip(a, b, strict=True)
    ]
    return _aggregate(float(value), np.mean(drawn, axis=0), a + b, level)


def _tasks(scores: Sequence[ArrayLike]) -> list[Floats]:
    tasks = [np.asarray(task, dtype=np.float64) for task in scores]
    if not tasks or any(task.ndim != 1 or len(task) == 0 for task in tasks):
        raise ValueError("needs one or more tasks, each with one or more values")
    return tasks


def _drawn(task: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, runs) values of a task, drawn with replacement."""
    return task[rng.integers(len(task), size=(resamples, len(task)))]


def _middle(rows: Floats) -> Floats:
    """(rows, runs) -> (rows,) means without the lowest and highest quarters."""
    cut = rows.shape[1] // 4
    return np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(axis=1)


def _better(ours: Floats, baseline: Floats) -> Floats:
    """(rows, a) and (rows, b) -> (rows,) shares of pairs in which the first is greater."""
    differences = np.sign(ours[:, :, None] - baseline[:, None, :])
    return ((differences + 1) / 2).mean(axis=(1, 2))


def _aggregate(value: float, drawn: Floats, tasks: list[Floats], level: float) -> Aggregate:
    if all(len(task) == 1 for task in tasks):
        return Aggregate(float(value), np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Aggregate(float(value), float(low), float(high))
