"""Rows of logits in chunks that stay in the second-level cache, with scratch that is kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

# Elements of a chunk. On a CPU two buffers and the gradient leave room for the logits in a cache of
# 2 MB; on a GPU launches cost more.
CHUNK = {"cpu": 1 << 17}
CHUNK_ELSEWHERE = 1 << 24
SPARE = 4
LINE = 16  # floats of a cache line; calls that write across two take twice the time

Made = TypeVar("Made")

_spare: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}


class Rows(NamedTuple):
    """Rows with what they are compared with; the reduction is in the weights.

    Attributes:
        student: Logits (n, C).
        teacher: Logits (n, C); None without a teacher term.
        targets: Classes (n, 1), int64, or class probabilities (n, C); None without a label term.
        label: Weight of each row's cross-entropy, (n, 1).
        soft: T times the weight b of each row's T^2 KL, (n, 1).
        grad: Where the gradient goes, (n, C) in the student's precision; None if not wanted.
        each: Where each row's loss goes, (n,); None if only their sum is wanted.
        teacher_lse: logsumexp(teacher / T) of each row, (n, 1), if it is known.
    """

    student: Tensor
    teacher: Tensor | None
    targets: Tensor | None
    label: Tensor
    soft: Tensor
    grad: Tensor | None = None
    each: Tensor | None = None
    teacher_lse: Tensor | None = None

    def split(self, step: int) -> "list[Rows]":
        """So many rows at a time."""
        if step >= len(self.student):
            return [self]
        n_parts = -(len(self.student) // -step)
        columns = [[None] * n_parts if x is None else x.split(step) for x in self]
        return [Rows(*part) for part in zip(*columns, strict=True)]


@lru_cache(maxsize=256)
def constant_column(n: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, 1) of one value; kept, and never written to."""
    return torch.full((n, 1), value, dtype=dtype, device=device)


@contextmanager
def scratch(n_buffers: int, rows: int, like: Tensor) -> Iterator[Sequence[Tensor]]:
    """Lends buffers (rows, C) for the length of the block.

    Threads and nested calls get their own, because what is lent is not in the store.

    Args:
        n_buffers: How many.
        rows: Rows of each.
        like: Logits (n, C) whose device and (at least single) precision the buffers have.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    n_classes = like.shape[1]
    apart = -(rows * n_classes // -LINE) * LINE
    size = n_buffers * apart
    spare = _spare.setdefault((like.device, dtype), [])
    try:
        whole: Tensor | None = spare.pop()  # atomic, unlike looking first
    except IndexError:
        whole = None
    if whole is None or whole.numel() < size:
        with torch.inference_mode(False):  # what is made in that mode is of no use outside it
            whole = torch.empty(size, device=like.device, dtype=dtype)
    try:
        yield whole.as_strided((n_buffers, rows, n_classes), (apart, n_classes, 1)).unbind()
    finally:
        if len(spare) < SPARE:
            spare.append(whole)


def chunk_rows(logits: Tensor) -> int:
    """How many rows (n, C) are taken at a time."""
    n, n_classes = logits.shape
    most = CHUNK.get(logits.device.type, CHUNK_ELSEWHERE) // n_classes
    if most >= n:
        return n
    aligned = LINE // math.gcd(n_classes, LINE)  # chunks of so many rows begin with a line
    return max(most - most % aligned if most > aligned else most, 1)


def by_chunks(
    rows: Rows, n_buffers: int, kernel: Callable[[Rows, Sequence[Tensor]], Made]
) -> list[Made]:
    """What a kernel makes of some rows at a time, with buffers of their size."""
    step, made = chunk_rows(rows.student), []
    with scratch(n_buffers, step, rows.student) as buffers:
        for part in rows.split(step):
            n = len(part.student)
            made.append(kernel(part, buffers if n == step else [b[:n] for b in buffers]))
    return made


def place(rows: Rows, spare: Tensor) -> Tensor:
    """Where the gradient is built: in its own place unless that has less precision."""
    fits = rows.grad is not None and rows.grad.dtype == spare.dtype
    return rows.grad if fits else spare  # type: ignore[return-value]


def put(rows: Rows, g: Tensor) -> None:
    """The gradient, to its place if it was built elsewhere."""
    if rows.grad is not None and g is not rows.grad:
        rows.grad.copy_(g)
