"""The objective for small logits, where calls cost more than arithmetic.

The terms are those of ``kernels`` with u = s/T and v = t/T: nothing is taken off before the
exponentials. Student and teacher lie in one buffer, so that scaling and exponential are one call
each; sums over classes are a product with ones, which takes less than a reduction. The loss is one
dot product:

    L = sum_rc (-b T p)_rc (s - t)_rc + sum_r (a log(Z_1/exp(s_y)) - b T^2 log(Z_t/Z_s))_r

where the first factor is the gradient's share of the teacher. Where logits are so large or so small
that a sum overflows or loses digits, the loss is made one that is not finite, and the caller asks
``kernels``: the factors of the gradient's shares are terms of the loss too, with weights of 0, and
those of the label are so large until the end that they overflow in time.

Buffers, their views and whatever depends on shapes and weights alone are made once and kept.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

# With more logits the chunked kernel, which fits the cache, wins; with more classes it needs less
# memory.
MOST_LOGITS, MOST_CLASSES = 100_000, 999

_empty = partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever torch's defaults are


class Buffers(NamedTuple):
    """Scratch of one call, as views of a few stretches of memory.

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
        share: Factors of ``probs`` in the gradient, (3R, 1).
        above: Z_1 and Z_t, (2, R).
        below: ``label`` with 1 for generated rows, and Z_s, (2, R).
        ratios: The logarithms of ``above`` over ``below``, (2, R).
        terms: ``apart``, ``ratios`` and ``share`` in a row, (R*C + 5R,).
        weights: Their weights in the loss: ``known`` and constants, (R*C + 5R,).
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
            # Of the label's: overflows where Z_1 is below 1e-27, and then some exponentials 0.
            scale = 2.0 ** (40 - math.frexp(label)[1])
            self.gradient = torch.cat((a * scale, b * t, -b * t)).unsqueeze(1)
            self.unscale = 1 / scale
            self.loss = torch.cat((a, -b * t * t, _empty(3 * n_rows).zero_()))
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
        grad = torch.add(lent.soft, lent.hard, alpha=self.unscale).add_(lent.known)
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
            terms, shares = _empty(size + 5 * n_rows), _empty(3 * size + 5 * n_rows)
            shares[3 * size :] = self.loss
            apart, ratios, share = terms.split((size, 2 * n_rows, 3 * n_rows))
            probs = shares[: 3 * size].view(-1, n_classes)
            hard, soft, known = probs.split(n_rows)
            below, above = sums.view(2, 2, n_rows).unbind(1)
            partition = sums[n_rows:]
            return Buffers(
                logits, logits[:n_rows], logits[n_rows:], apart.view(-1, n_classes),
                probs, probs[n_rows:], hard, soft, known, known[:n_real],
                sums[:n_real].unsqueeze(1), partition, partition.unsqueeze(1),
                share.unsqueeze(1), above, below, ratios.view(2, n_rows),
                terms, shares[2 * size :],
            )  # fmt: skip


@lru_cache(maxsize=8)
def _spare(small: Small) -> list[Buffers]:
    """Buffers that nobody uses now; a loop has few shapes, so few are kept."""
    return []
