"""Orders of the classes that a teacher's outputs may have, other than the data's."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def told_orders(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Orders that need no fit, so that one image of a class is enough.

    Each is the class that every output stands for, by a phrase after a comma (or nothing).

    Example:
        >>> {name: order.tolist() for name, order in told_orders(["cat", "dog"]).items()}
        {'': [1, 0]}
    """
    places = np.arange(len(classes))
    orders = {
        ", as sorted by name, which data.class_order=sorted gives": _sorted(classes, str),
        ", as sorted by number": _sorted(classes, _number),
        ", each one place on": np.roll(places, -1),
        ", each one place back": np.roll(places, 1),
    }
    if len(classes) == 2:  # all of them are the swap
        orders = {"": places[::-1]}
    return {name: order for name, order in orders.items() if (order != places).any()}


def fitted(answers: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """The class that each output must stand for so that most answers are right.

    Example:
        >>> fitted(np.array([1, 1, 2, 0]), np.array([0, 0, 1, 2]), 3).tolist()
        [2, 0, 1]
    """
    from scipy.optimize import linear_sum_assignment  # a second that a sound teacher does not need

    counts = np.bincount(answers * num_classes + targets, minlength=num_classes**2)
    gains = counts.reshape(num_classes, num_classes).astype(float)
    # Less than one answer in all: of orders that fit alike, the one that moves least.
    gains[np.diag_indices(num_classes)] += 0.5 / num_classes
    return np.asarray(linear_sum_assignment(gains, maximize=True)[1])


def held_out(answers: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Which answers are right in the order that fits the other half of each class best.

    Args:
        answers: The class that was answered for each image, (n,).
        targets: The right class, (n,).
        num_classes: K.
    """
    half = np.empty(len(targets), bool)
    half[np.argsort(targets, kind="stable")] = np.arange(len(targets)) % 2 == 0
    right = np.empty(len(targets), bool)
    for part in (half, ~half):
        places = fitted(answers[~part], targets[~part], num_classes)
        right[part] = places[answers[part]] == targets[part]
    return right


def _sorted(classes: Sequence[str], key: Callable[[str], str | float]) -> np.ndarray:
    return np.array(sorted(range(len(classes)), key=lambda place: key(classes[place])))


def _number(name: str) -> float:
    # Names that are no numbers come last, as they were: the sort is stable.
    return float(name) if name.isdecimal() else math.inf
