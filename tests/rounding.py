"""What float32 results may be off by: at most twice what the plain composition is, on this machine.

Sums are taken in another order on every machine, so an error that was seen once says nothing. What
the plain composition loses on the same input is measured beside it; where it happens to lose
nothing, a few roundings of the result are allowed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fskd.losses.targets import kd_objective

EPS = torch.finfo(torch.float32).eps
ROUNDINGS = 4  # of a result that is as large as its largest part

Found = tuple[Tensor, Tensor]  # a loss and its gradient


def differentiated(loss: Callable[[Tensor], Tensor], student: Tensor) -> Found:
    """The loss and its gradient with respect to the student."""
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def exact(data: Any) -> Found:
    """Loss and gradient by the definition in float64."""
    options = {name: _doubled(value) for name, value in data.options.items()}
    teacher, targets = data.teacher.double(), _doubled(data.targets)
    return differentiated(
        lambda s: kd_objective(s, teacher, targets, **options), data.student.double()
    )


def plain(data: Any) -> Found:
    """The same in the precision of the logits."""
    return differentiated(
        lambda s: kd_objective(s, data.teacher, data.targets, **data.options), data.student
    )


def _doubled(x: Any) -> Any:
    """In float64 if it is a tensor of numbers that are not whole."""
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    return (found.double() - expected)[expected.isfinite()].abs().max().item()


def largest(x: Tensor) -> float:
    """The largest absolute value."""
    return x[x.isfinite()].abs().max().item()


def as_close_as_plain(
    found: Sequence[Found], plainly: Sequence[Found], expected: Sequence[Found],
    roundings: float = ROUNDINGS,
) -> None:  # fmt: skip
    """Root mean squares over several inputs, since a single error may be 0 by chance.

    Args:
        found: Losses and gradients.
        plainly: Those of the plain composition.
        expected: Those in float64.
        roundings: How many of the largest entry are allowed beside.
    """
    for part, what in enumerate(("loss", "gradient")):
        ours, theirs, size = (
            _mean_square([function(*pair) for pair in pairs])
            for function, pairs in (
                (off, [(f[part], e[part]) for f, e in zip(found, expected, strict=True)]),
                (off, [(p[part], e[part]) for p, e in zip(plainly, expected, strict=True)]),
                (largest, [(e[part],) for e in expected]),
            )
        )
        bound = 2 * theirs + roundings * EPS * size
        assert ours <= bound, f"{what} is off by {ours:.2e}, plain by {theirs:.2e} of {size:.2e}"


def _mean_square(values: Sequence[float]) -> float:
    """The root of the mean square."""
    return math.sqrt(sum(x * x for x in values) / len(values))
