"""The objective for small logits, where calls cost more than arithmetic.

Student at T = 1, student at T and teacher at T are stacked into one tensor, so that maximum,
exponential and sum are three calls in all; whatever depends on shapes and weights alone is made
once and kept.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# With more logits the chunked kernel, which takes two exponentials instead of three, wins; with
# more classes it needs less memory.
MOST_LOGITS, MOST_CLASSES = 40_000, 999


class Plan(NamedTuple):
    """Constants for R rows of which the first B are real.

    Attributes:
        inverse: 1, 1/T, 1/T, (3, 1, 1).
        gradient: Factor of each row's three softmaxes in the gradient, (3, R).
        log_z: Factor of each row's three log-partition functions in the loss, (3R,).
        target: Minus the weight of a real row's label, (B, 1).
        label: Weight of the mean label term.
        temperature: T.
    """

    inverse: Tensor
    gradient: Tensor
    log_z: Tensor
    target: Tensor
    label: float
    temperature: float


@lru_cache(maxsize=64)
def plan(
    n_rows: int, n_real: int, temperature: float, label: float, soft: float, generated: float
) -> Plan:
    """Constants of a shape and its weights.

    Args:
        n_rows: R.
        n_real: B.
        temperature: T.
        label: Weight of each real row's cross-entropy.
        soft: Weight of each real row's T^2 KL.
        generated: Weight of each generated row's T^2 KL.
    """
    a = torch.zeros(n_rows)
    a[:n_real] = label
    b = torch.full((n_rows,), generated)
    b[:n_real] = soft
    t = temperature
    return Plan(
        torch.tensor([1.0, 1 / t, 1 / t]).view(3, 1, 1),
        torch.stack((a, b * t, -b * t)),
        torch.cat((a, b * t * t, -b * t * t)),
        -a[:n_real].unsqueeze(1),
        label * n_real,
        temperature,
    )


def stacked(
    student: Tensor, teacher: Tensor, targets: Tensor, constants: Plan
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a CE + b T^2 KL.

    Args:
        student: Logits (R, C), float32 or bfloat16.
        teacher: Logits (R, C), float32 or bfloat16.
        targets: Classes (B,), int64.
        constants: Of this R and B.

    Returns:
        The loss, scalar, and its gradient, (R, C), in the student's precision.
    """
    inverse, gradient, log_z, target, label, temperature = constants
    z = torch.stack((student, student, teacher))
    z = (z if z.dtype == torch.float32 else z.float()).mul_(inverse)
    z.sub_(z.amax(2, True))
    probs = z.exp()
    partition = probs.sum(2)
    loss = torch.dot(partition.log().view(-1), log_z)
    probs.mul_(gradient.div(partition).unsqueeze_(2))
    hard, soft, known = z.unbind()
    all_real = len(targets) == len(student)
    real = hard if all_real else hard[: len(targets)]
    loss = torch.add(loss, F.nll_loss(real, targets), alpha=label)
    difference = soft.sub_(known).view(-1)
    loss.add_(torch.dot(difference, probs[2].view(-1)), alpha=temperature)
    grad = probs.sum(0)
    real = grad if all_real else grad[: len(targets)]
    real.scatter_add_(1, targets.unsqueeze(1), target)
    return loss, grad.to(student.dtype)
