"""Doubts about a teacher: what is wrong with it is measured before a student is trained.

A doubt is raised only by a large and certain difference, so that a sound teacher, be it weak or
asked for few images, raises none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from fskd.teachers.class_orders import fitted, held_out, told_orders
from fskd.teachers.normalisations import Normalisation, others, written

CERTAIN = 1e-4  # largest p-value, over all that was tried
GAIN = 0.10  # share of the images that a cause must explain
# Share of the errors that must go. Batch norms that saw a few steps fit other normalisations
# better than their own, which took up to 0.56 of the errors; the right one took 0.9 and more.
ORDER_CURES, NORMALISATION_CURES = 0.5, 0.75
SUM = 1e-3  # rows of probabilities sum to one this closely
LARGEST_FIT = 2000  # classes; an order of more is not searched for
SHOWN = 4  # moves that a phrase spells out

Again = Callable[[tuple[float, ...], tuple[float, ...]], Tensor]


class Asked(NamedTuple):
    """What the teacher answered.

    Attributes:
        logits: (n, K) float32 on the CPU, of n training images without augmentation.
        targets: (n,) int64.
    """

    logits: Tensor
    targets: Tensor


class _Order(NamedTuple):
    """An order of the classes that fits the answers.

    Attributes:
        name: How it comes about, as a phrase after a comma; may be empty.
        places: The class that each output stands for.
        right: Which answers are right then.
    """

    name: str
    places: np.ndarray
    right: np.ndarray


def accuracy(asked: Asked) -> float:
    """Share of the images whose largest logit is the target's; NaN without images."""
    return float(_right(asked).mean()) if len(asked.targets) else math.nan


def doubts(
    asked: Asked,
    classes: Sequence[str],
    *,
    own: Normalisation,
    recorded: float | None = None,
    again: Again | None = None,
    known: Mapping[str, Normalisation] | None = None,
) -> list[str]:
    """What is probably wrong with a teacher, one line each; empty if nothing is.

    Args:
        asked: Its answers for training images in mixed order.
        classes: Names of the K classes.
        own: Mean and standard deviation with which it was asked.
        recorded: Its test accuracy, in [0, 1], if one was noted.
        again: Asks it for the same images, or the first of them (256 will do), normalised by
            another mean and standard deviation: logits (m, K) on the CPU, m <= n. None if it must
            not be asked again. It is called only if more than a tenth of the answers are wrong.
        known: Normalisations to try besides the usual ones, by name, such as the data's own.

    Example:
        >>> import torch
        >>> targets = torch.arange(100) % 2
        >>> asked = Asked(5 * torch.eye(2)[1 - targets], targets)
        >>> doubts(asked, ["cat", "dog"], own=((0.5,), (0.5,)))[0][:66]
        'its classes are in another order: 100.0 % of 100 answers are right'
    """
    if asked.logits.shape[1] != len(classes):
        return [f"it has {asked.logits.shape[1]} outputs for {len(classes)} classes"]
    finite = asked.logits.isfinite().all(1)
    found = _not_finite(finite)
    asked = Asked(asked.logits[finite].float(), asked.targets[finite])
    if not len(asked.targets):
        return found
    found += _probabilities(asked.logits)
    below = _below(asked, recorded)
    tried = ["order of the classes"] if len(asked.targets) >= 4 * len(classes) else []
    cause = _order(asked, classes)
    if not cause and again is not None and 1 - accuracy(asked) > GAIN:
        tried.append("usual normalisation")
        # A record says how good it should be, so that less of a cure is a cure.
        cures = ORDER_CURES if below else NORMALISATION_CURES
        cause = _normalisation(asked, others(own, known or {}), again, cures)
    return [*found, *(cause or _near_chance(asked, classes, tried) or below)]


def not_finite(net: nn.Module) -> str | None:
    """The first parameter or buffer with a NaN or an infinity, as a phrase; None if there is none.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> _ = net.bias.data[0].fill_(math.nan)
        >>> not_finite(net)
        'its bias is NaN or infinite in 1 of 2 places: load other weights'
    """
    for name, values in net.state_dict().items():
        if isinstance(values, Tensor) and values.is_floating_point():
            bad = int((~values.isfinite()).sum())
            if bad:
                places = f"{bad} of {values.numel()} places"
                return f"its {name} is NaN or infinite in {places}: load other weights"
    return None


def _not_finite(finite: Tensor) -> list[str]:
    bad = int((~finite).sum())
    return [f"its outputs are NaN or infinite for {bad} of {len(finite)} images"] if bad else []


def are_probabilities(logits: Tensor) -> bool:
    """Whether rows look as a softmax leaves them."""
    off = (logits.double().sum(1) - 1).abs()
    return logits.shape[1] > 1 and bool((logits >= 0).all()) and bool((off <= SUM).all())


def _probabilities(logits: Tensor) -> list[str]:
    if not are_probabilities(logits):
        return []
    return ["its outputs are probabilities (rows sum to one), not logits: drop the softmax"]


def _right(asked: Asked) -> np.ndarray:
    return (asked.logits.argmax(1) == asked.targets).numpy()


def _explains(
    before: np.ndarray, after: np.ndarray, targets: Tensor, cures: float, tries: int
) -> bool:
    """Whether so many answers become right that nothing but the cause can be the reason.

    Most errors must go, and more than half of what is beyond chance be right afterwards: a network
    that has learnt little tells some classes apart, and other tries may suit it better too.
    """
    chance = float(targets.bincount().max() / len(targets))
    gain = after.mean() - before.mean()
    if gain < max(GAIN, cures * (1 - before.mean())) or after.mean() < (1 + chance) / 2:
        return False
    from scipy.special import bdtrc  # late, since a sound teacher does not need it

    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return bool(bdtrc(won - 1, won + lost, 0.5) * tries < CERTAIN)  # the sign test


def _order(asked: Asked, classes: Sequence[str]) -> list[str]:
    answers, targets, before = asked.logits.argmax(1).numpy(), asked.targets.numpy(), _right(asked)
    if before.mean() > 1 - GAIN:
        return []  # no order can explain that much
    told = [
        _Order(name, places, places[answers] == targets)
        for name, places in told_orders(classes).items()
    ]
    for order in told:
        if _explains(before, order.right, asked.targets, ORDER_CURES, len(told)):
            return [_order_phrase(order, answers, before, classes)]
    if len(classes) > LARGEST_FIT:
        return []
    right = held_out(answers, targets, len(classes))
    if not _explains(before, right, asked.targets, ORDER_CURES, 1):
        return []
    order = _Order("", fitted(answers, targets, len(classes)), right)
    return [_order_phrase(order, answers, before, classes)]


def _order_phrase(
    order: _Order, answers: np.ndarray, before: np.ndarray, classes: Sequence[str]
) -> str:
    answered = np.unique(answers[order.right])
    moved = [place for place in answered if order.places[place] != place]
    moves = [f"{classes[place]}->{classes[order.places[place]]}" for place in moved[:SHOWN]]
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    return (
        f"its classes are in another order{order.name}: {_percent(order.right.mean())} of "
        f"{len(before)} answers are right, not {_percent(before.mean())}, after moving "
        f"{', '.join(moves)}{more}"
    )


def _normalisation(
    asked: Asked, tried: Mapping[str, Normalisation], again: Again, cures: float
) -> list[str]:
    logits = {name: again(*one).float() for name, one in tried.items()}
    n = min(map(len, logits.values()))
    targets, before = asked.targets[:n], _right(asked)[:n]
    rights = {name: _right_if_finite(Asked(rows[:n], targets)) for name, rows in logits.items()}
    best = max(rights, key=lambda name: int(rights[name].sum()))
    if n == 0 or not _explains(before, rights[best], targets, cures, len(tried)):
        return []
    mean, std = map(written, tried[best])
    return [
        f"it is used to another normalisation: with mean {mean} and std {std} ({best}) it is right "
        f"on {_percent(rights[best].mean())} of {n} images, not {_percent(before.mean())}: set "
        "data.mean and data.std"
    ]


def _right_if_finite(asked: Asked) -> np.ndarray:
    # NaN counts as the largest: an image without an answer would be right by chance.
    return _right(asked) & asked.logits.isfinite().all(1).numpy()


def _near_chance(asked: Asked, classes: Sequence[str], tried: Sequence[str]) -> list[str]:
    """Compares with answers that are as frequent but drawn without a look at the image.

    The share of the largest class would be too high a bar: a sound teacher of equal classes can
    stay below it on a subset with a long tail.
    """
    n, found = len(asked.targets), accuracy(asked)
    given, wanted = (
        rows.bincount(minlength=len(classes)).double() / n
        for rows in (asked.logits.argmax(1), asked.targets)
    )
    chance = float((given * wanted).sum())
    half = (1 + chance) / 2
    if 3 * (_error(chance, n) + _error(half, n)) >= half - chance:
        return []  # too few images: a teacher that is halfway good might do no better
    near = min(0.05, chance / 2) * (1 - chance)  # what an untrained network may have by luck
    if found > chance + max(2 * _error(chance, n), near):
        return []
    most = f"'{classes[int(given.argmax())]}' for {_percent(float(given.max()))} of them"
    known = f"; no other {' or '.join(tried)} explains it" if tried else ""
    return [
        f"it is right on {_percent(found)} of {n} images, near chance ({_percent(chance)}), and "
        f"answers {most}{known}: check that its weights are trained and are of these classes"
    ]


def _error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _below(asked: Asked, recorded: float | None) -> list[str]:
    if recorded is None:
        return []
    n, found = len(asked.targets), accuracy(asked)
    # Two right and two wrong answers more (Agresti, Coull): a perfect record has an error too.
    error = _error((recorded * n + 2) / (n + 4), n + 4)
    if found >= recorded - max(GAIN, 4 * error):
        return []
    return [
        f"it is right on {_percent(found)} of {n} training images, but {_percent(recorded)} was "
        "recorded for it: check that weights, data and their normalisation are those of the record"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
