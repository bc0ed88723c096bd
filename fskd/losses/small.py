"""The objective for small logits, where calls cost more than arithmetic.

With the terms of ``kernels``: Tu and Tv lie in one buffer, so that maximum, scaling and exponential
are one call each; sums over classes are a product with ones and the loss is one dot product, which
take less than reductions. Buffers, their views and whatever depends on shapes and weights alone are
made once and kept.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from fskd.losses.kernels import n_squarings

# With more logits the chunked kernel, which fits the cache, wins; with more classes it needs less
# memory.
MOST_LOGITS, MOST_CLASSES = 40_000, 999

_empty = partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever torch's defaults are


class Buffers(NamedTuple):
    """Scratch of one call, as views of two stretches of memory.

    Attributes:
        logits: Tu of the student, then Tv of the teacher, (2R, C).
        student: Tu, (R, C).
        teacher: Tv, (R, C); later T(u - v).
        real: Tu of the real rows, (B, C).
        top: Maximum of each row, (2R, 1).
        probs: exp(u)^T, exp(u), exp(v), (3R, C); later each one's share in the gradient.
        both: The last two of these, (2R, C).
        hard: The first, (R, C).
        soft: The second, (R, C).
        known: The third, (R, C).
        partition: Sums of ``probs``, (3R,).
        partitions: The same, (3R, 1).
        share: (3R, 1).
        log_z: Logarithms of the sums, (3R,).
        picked: Tu of the labels, (B, 1).
        terms: T(u - v), ``log_z`` and ``picked`` in a row, (R*C + 3R + B,).
        weights: Their weights in the loss: ``known`` and constants, (R*C + 3R + B,).
    """

    logits: Tensor
    student: Tensor
    teacher: Tensor
    real: Tensor
    top: Tensor
    probs: Tensor
    both: Tensor
    hard: Tensor
    soft: Tensor
    known: Tensor
    partition: Tensor
    partitions: Tensor
    share: Tensor
    log_z: Tensor
    picked: Tensor
    terms: Tensor
    weights: Tensor


class Small:
    """Loss and gradient of a CE + b T^2 KL for logits of one shape, on a CPU.

    Args:
        n_rows: R.
        n_real: B; the rows after them have no label.
        n_classes: C.
        temperature: T.
        label: Weight a of each real row's cross-entropy.
        soft: Weight b of each real row's T^2 KL.
        generated: Weight b of each generated row's T^2 KL.
    """

    def __init__(
        self, n_rows: int, n_real: int, n_classes: int, temperature: float,
        label: float, soft: float, generated: float,
    ) -> None:  # fmt: skip
        self.shape = n_rows, n_real, n_classes
        self.squarings, t = n_squarings(temperature), temperature
        self.all_real = n_real == n_rows
        with torch.inference_mode(False):  # what is made in that mode is of no use outside it
            a, b = _empty(n_rows).zero_(), _empty(n_rows).fill_(generated)
            a[:n_real], b[:n_real] = label, soft
            self.inverse, self.ones = _empty(()).fill_(1 / t), _empty(n_classes).fill_(1.0)
            self.gradient = torch.cat((a, b * t, -b * t)).unsqueeze(1)
            self.loss = torch.cat((a, b * t * t, -b * t * t, -a[:n_real]))
            self.target = -a[:n_real].unsqueeze(1)

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both.

        Args:
            student: Logits (R, C), float32 or bfloat16.
            teacher: Logits (R, C), float32 or bfloat16.
            targets: Classes (B,), int64.
            out: Where the gradient goes, if it has a place already.

        Returns:
            The loss, scalar, and its gradient, (R, C), in the student's precision.

        Raises:
            RuntimeError: If a label is no class.
        """
        spare, column = _spare(self), targets.unsqueeze(1)
        try:
            lent = spare.pop()  # atomic; threads and nested calls get buffers of their own
        except IndexError:
            lent = self.buffers()
        torch.cat((student, teacher), out=lent.logits)
        lent.logits.sub_(torch.amax(lent.logits, 1, True, out=lent.top))
        torch.mul(lent.logits, self.inverse, out=lent.both).exp_()
        self._power(lent)
        torch.mv(lent.probs, self.ones, out=lent.partition)
        torch.log(lent.partition, out=lent.log_z)
        torch.gather(lent.real, 1, column, out=lent.picked)
        torch.sub(lent.student, lent.teacher, out=lent.teacher)
        lent.probs.mul_(torch.div(self.gradient, lent.partitions, out=lent.share))
        loss = torch.dot(lent.terms, lent.weights)
        grad = torch.add(lent.hard, lent.soft).add_(lent.known)
        real = grad if self.all_real else grad[: len(targets)]
        real.scatter_add_(1, column, self.target)
        spare.append(lent)
        if out is not None:
            return loss, out.copy_(grad)
        return loss, grad if grad.dtype is student.dtype else grad.to(student.dtype)

    def _power(self, lent: Buffers) -> None:
        """exp(u)^T."""
        if not self.squarings:
            torch.exp(lent.student, out=lent.hard)
            return
        torch.mul(lent.soft, lent.soft, out=lent.hard)
        for _ in range(self.squarings - 1):
            lent.hard.mul_(lent.hard)

    def buffers(self) -> Buffers:
        """New ones."""
        n_rows, n_real, n_classes = self.shape
        size, tail = n_rows * n_classes, len(self.loss)
        with torch.inference_mode(False):
            numbers, shares = _empty(2 * size + tail), _empty(3 * size + tail)
            shares[3 * size :] = self.loss
            logits, probs = numbers[: 2 * size], shares[: 3 * size]
            logits, probs = logits.view(-1, n_classes), probs.view(-1, n_classes)
            student, teacher = logits.split(n_rows)
            hard, soft, known = probs.split(n_rows)
            log_z, picked = numbers[2 * size :].split((3 * n_rows, n_real))
            partition = _empty(3 * n_rows)
            return Buffers(
                logits, student, teacher, student[:n_real], _empty(2 * n_rows, 1),
                probs, probs[n_rows:], hard, soft, known,
                partition, partition.unsqueeze(1), _empty(3 * n_rows, 1),
                log_z, picked.unsqueeze(1), numbers[size:], shares[2 * size :],
            )  # fmt: skip


@lru_cache(maxsize=8)
def _spare(small: Small) -> list[Buffers]:
    """Buffers that nobody uses now; a loop has few shapes, so few are kept."""
    return []
