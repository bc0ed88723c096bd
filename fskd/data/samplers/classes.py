"""What class-balanced samplers share: rank within each class, then take the classes in turn."""

from collections.abc import Callable

import numpy as np
from pydantic import Field

from fskd.data.samplers.base import SamplerSettings


class PerClassSettings(SamplerSettings):
    """Whether classes are ranked one by one."""

    per_class: bool = Field(
        True, description="Rank within each class and take the classes in turn; needed by shots."
    )


def interleave(order: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Takes the classes in turn and keeps the order within each.

    Rounds of one example per class, classes in a new random order in every round, so the first k*K
    examples are the first k of every class, and class counts differ by at most one at every
    prefix. A class that runs out leaves the later rounds to the others.

    Args:
        order: Permutation of 0..N-1, (N,).
        targets: Class of each example, (N,).
        rng: Draws the order of the classes in each round.

    Returns:
        int64 (N,).
    """
    by_class = order[np.argsort(targets[order], kind="stable")]
    counts = np.bincount(targets)
    starts = np.cumsum(counts) - counts
    rounds = np.arange(len(targets)) - np.repeat(starts, counts)
    place = rng.permuted(np.tile(np.arange(len(counts)), (counts.max(), 1)), axis=1)
    turn = rounds * len(counts) + place[rounds, targets[by_class]]
    return by_class[np.argsort(turn, kind="stable")].astype(np.int64)


def rank_groups(
    targets: np.ndarray,
    per_class: bool,
    rng: np.random.Generator,
    order: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Ranks each class by itself and interleaves them, or ranks all examples at once.

    Args:
        targets: Class of each example, (N,).
        per_class: Whether every class is a group of its own.
        rng: Shuffles the examples first, so that ties that ``order`` leaves as they are fall at
            random; then draws the order of the classes.
        order: Function from the examples of a group (n,) to an order of 0..n-1 (n,).

    Returns:
        int64 (N,).
    """
    shuffled = rng.permutation(len(targets)).astype(np.int64)
    if not per_class:
        return shuffled[order(shuffled)]
    groups = (shuffled[targets[shuffled] == c] for c in np.unique(targets))
    ranked = np.concatenate([group[order(group)] for group in groups])
    return interleave(ranked, targets, rng)


def rank_by_score(
    score: np.ndarray, targets: np.ndarray, per_class: bool, rng: np.random.Generator
) -> np.ndarray:
    """Ranks by a score (N,), largest first; equal scores fall at random. int64 (N,)."""
    return rank_groups(
        targets, per_class, rng, lambda group: np.argsort(-score[group], kind="stable")
    )
