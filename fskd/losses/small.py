"""The objective for small logits, where calls cost more than arithmetic.

With the terms of ``kernels``: Tu and Tv lie in one buffer, so that maximum, scaling and exponential
are one call each; sums over classes are a product with ones, which takes less than a reduction. The
loss is one dot product:

    L = sum_rc (-b T p - a e_y)_rc (Tu)_rc + sum_rc (b T p)_rc (Tv)_rc
        + sum_r (a log Z_1 + b T^2 log Z_s - b T^2 log Z_t)_r

where the first factor is the gradient's share of label and teacher. Buffers, their views and
whatever depends on shapes and weights alone are made once and kept.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

# With more logits the chunked kernel, which fits the cache, wins; with more classes it needs less
# memory.
MOST_LOGITS, MOST_CLASSES = 40_000, 999

_empty = partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever torch's defaults are


class Buffers(NamedTuple):
    """Scratch of one call, as views of two stretches of memory.

    Attributes:
        logits: Tu of the student, then Tv of the teacher, (2R, C).
        student: Tu, (R, C).
        top: Maximum of each row, (2R, 1).
        probs: exp(u)^T, exp(u), exp(v), (3R, C); later each one's share in the gradient.
        both: The last two of these, (2R, C).
        hard: The first, (R, C).
        soft: The second, (R, C).
        known: The third, (R, C); later with the label's share.
        real: ``known`` of the real rows, (B, C).
        teacher: The third's share with its sign changed, (R, C).
        partition: Sums of ``probs``, (3R,).
        partitions: The same, (3R, 1).
        share: (3R, 1).
        log_z: Logarithms of the sums, (3R,).
        terms: ``logits`` and ``log_z`` in a row, (2R*C + 3R,).
        weights: Their weights in the loss: ``known``, ``teacher`` and constants, (2R*C + 3R,).
    """

    logits: Tensor
    student: Tensor
    top: Tensor
    probs: Tensor
    both: Tensor
    hard: Tensor
    soft: Tensor
    known: Tensor
    real: Tensor
    teacher: Tensor
    partition: Tensor
    partitions: Tensor
    share: Tensor
    log_z: Tensor
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
        self.shape, t = (n_rows, n_real, n_classes), temperature
        with torch.inference_mode(False):  # what is made in that mode is of no use outside it
            a, b = _empty(n_rows).zero_(), _empty(n_rows).fill_(generated)
            a[:n_real], b[:n_real] = label, soft
            self.inverse, self.ones = _empty(()).fill_(1 / t), _empty(n_classes).fill_(1.0)
            self.gradient = torch.cat((a, b * t, -b * t)).unsqueeze(1)
            self.loss = torch.cat((a, b * t * t, -b * t * t))
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
        spare = _spare(self)
        try:
            lent = spare.pop()  # atomic; threads and nested calls get buffers of their own
        except IndexError:
            lent = self.buffers()
        torch.cat((student, teacher), out=lent.logits)
        lent.logits.sub_(torch.amax(lent.logits, 1, True, out=lent.top))
        torch.exp(lent.student, out=lent.hard)
        torch.mul(lent.logits, self.inverse, out=lent.both).exp_()
        torch.log(torch.mv(lent.probs, self.ones, out=lent.partition), out=lent.log_z)
        lent.probs.mul_(torch.div(self.gradient, lent.partitions, out=lent.share))
        torch.neg(lent.known, out=lent.teacher)
        lent.real.scatter_add_(1, targets.unsqueeze(1), self.target)
        loss = torch.dot(lent.terms, lent.weights)
        grad = torch.add(lent.hard, lent.soft).add_(lent.known)
        spare.append(lent)
        if out is not None:
            return loss, out.copy_(grad)
        return loss, grad if grad.dtype is student.dtype else grad.to(student.dtype)

    def buffers(self) -> Buffers:
        """New ones."""
        n_rows, n_real, n_classes = self.shape
        size = n_rows * n_classes
        with torch.inference_mode(False):
            terms, shares = _empty(2 * size + 3 * n_rows), _empty(4 * size + 3 * n_rows)
            shares[4 * size :] = self.loss
            logits, log_z = terms[: 2 * size].view(-1, n_classes), terms[2 * size :]
            hard, soft, known, teacher = shares[: 4 * size].view(4, n_rows, n_classes)
            probs, partition = shares[: 3 * size].view(-1, n_classes), _empty(3 * n_rows)
            return Buffers(
                logits, logits[:n_rows], _empty(2 * n_rows, 1),
                probs, probs[n_rows:], hard, soft, known, known[:n_real], teacher,
                partition, partition.unsqueeze(1), _empty(3 * n_rows, 1),
                log_z, terms, shares[2 * size :],
            )  # fmt: skip


@lru_cache(maxsize=8)
def _spare(small: Small) -> list[Buffers]:
    """Buffers that nobody uses now; a loop has few shapes, so few are kept."""
    return []
