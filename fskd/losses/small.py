"""The objective for small logits, where calls cost more than arithmetic.

The terms are those of ``kernels`` with u = s/T and v = t/T: nothing is taken off before the
exponentials. Student and teacher lie in one buffer, so that scaling and exponential are one call
each; sums over classes are a product with ones, which takes less than a reduction. The loss is one
dot product:

    L = sum_rc (-b T p)_rc (s - t)_rc + sum_r (b T^2 log(Z_s/Z_t) - a log(exp(s_y)/Z_1))_r

where the first factor is the gradient's share of the teacher. Where logits are so large or so small
that a sum or its inverse overflows, the loss is not finite, and the caller asks ``kernels``.
Buffers, their views and whatever depends on shapes and weights alone are made once and kept.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

# With more logits the chunked kernel, which fits the cache, wins; with more classes it needs less
# memory.
MOST_LOGITS, MOST_CLASSES = 100_000, 999

_empty = partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever torch's defaults are


class Buffers(NamedTuple):
    """Scratch of one call, as views of two stretches of memory.

    Attributes:
        logits: Those of the student, then those of the teacher, (2R, C).
        student: The first of them, (R, C).
        teacher: The second, (R, C).
        apart: Their differences, (R, C).
        probs: exp(u)^T, exp(u), exp(v), (3R, C); later each one's share in the gradient.
        both: The last two of these, (2R, C).
        hard: The first, (R, C).
        soft: The second, (R, C).
        known: The third, (R, C).
        real: ``known`` of the real rows, (B, C).
        label: exp(s_y) of the real rows, (B, 1).
        partition: Sums of ``probs``, (3R,).
        partitions: The same, (3R, 1).
        share: (3R, 1).
        above: ``label`` with 1 for generated rows, and Z_s, (2, R).
        below: Z_1 and Z_t, (2, R).
        ratios: The logarithms of ``above`` over ``below``, (2, R).
        terms: ``apart`` and ``ratios`` in a row, (R*C + 2R,).
        weights: Their weights in the loss: ``known`` and constants, (R*C + 2R,).
    """

    logits: Tensor
    student: Tensor
    teacher: Tensor
    apart: Tensor
    probs: Tensor
    both: Tensor
    hard: Tensor
    soft: Tensor
    known: Tensor
    real: Tensor
    label: Tensor
    partition: Tensor
    partitions: Tensor
    share: Tensor
    above: Tensor
    below: Tensor
    ratios: Tensor
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
            self.loss = torch.cat((-a, b * t * t))
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
        index = targets.unsqueeze(1)
        torch.cat((student, teacher), out=lent.logits)
        torch.sub(lent.student, lent.teacher, out=lent.apart)
        torch.exp(lent.student, out=lent.hard)
        torch.gather(lent.hard, 1, index, out=lent.label)
        torch.mul(lent.logits, self.inverse, out=lent.both).exp_()
        torch.mv(lent.probs, self.ones, out=lent.partition)
        torch.div(lent.above, lent.below, out=lent.ratios).log_()
        lent.probs.mul_(torch.div(self.gradient, lent.partitions, out=lent.share))
        loss = torch.dot(lent.terms, lent.weights)
        lent.real.scatter_add_(1, index, self.target)
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
            logits, sums = _empty(2 * n_rows, n_classes), _empty(4 * n_rows).fill_(1.0)
            terms, shares = _empty(size + 2 * n_rows), _empty(3 * size + 2 * n_rows)
            shares[3 * size :] = self.loss
            probs = shares[: 3 * size].view(-1, n_classes)
            hard, soft, known = probs.split(n_rows)
            above, below = sums.view(2, 2, n_rows).unbind(1)
            partition = sums[n_rows:]
            return Buffers(
                logits, logits[:n_rows], logits[n_rows:], terms[:size].view(-1, n_classes),
                probs, probs[n_rows:], hard, soft, known, known[:n_real],
                sums[:n_real].unsqueeze(1), partition, partition.unsqueeze(1),
                _empty(3 * n_rows, 1), above, below, terms[size:].view(2, n_rows),
                terms, shares[2 * size :],
            )  # fmt: skip


@lru_cache(maxsize=8)
def _spare(small: Small) -> list[Buffers]:
    """Buffers that nobody uses now; a loop has few shapes, so few are kept."""
    return []
