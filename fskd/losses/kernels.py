"""Cross-entropy and softened KL, value and gradient together, a few rows at a time.

For one row with u = (s - max s)/T and v = (t - max t)/T

    KL = sum_c p_c (v_c - u_c) + log Z_s - log Z_t,    p = exp(v)/Z_t,  q = exp(u)/Z_s
    CE = log Z_1 - T u_y,                              Z_1 = sum_c exp(u_c)^T
    d(a CE + b T^2 KL)/ds = a exp(u)^T/Z_1 + b T q - b T p - a e_y

Rows are taken in chunks that stay in the second-level cache; every exponential is taken once, into
scratch that is kept between calls; the gradient is built in its final place. exp(u)^T is a product
for T = 2, 4, 8 and a third exponential otherwise. Nothing here knows autograd.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a chunk. On a CPU its buffers fill a cache of 2 MB; on a GPU launches cost more.
CHUNK = {"cpu": 1 << 17}
CHUNK_ELSEWHERE = 1 << 24
SPARE = 4
LINE = 16  # floats of a cache line; calls that write across two take twice the time

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

    def part(self, start: int, stop: int) -> "Rows":
        """The rows from ``start`` to ``stop``."""
        return Rows(*(None if x is None else x[start:stop] for x in self))  # type: ignore[arg-type]


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


def run(rows: Rows, temperature: float, smoothing: float = 0.0, masked: bool = False) -> Tensor:
    """The sum of the weighted losses of all rows; fills ``grad`` and ``each``.

    Args:
        rows: The rows.
        temperature: T > 0.
        smoothing: Share of the label that goes to the K-1 wrong classes.
        masked: Whether a class may be -inf in both logits; its p (v - u) is 0 then, not NaN.

    Returns:
        Scalar in at least float32.
    """
    if rows.teacher is None:
        kernel = partial(_label_chunk, smoothing=smoothing, masked=masked)
    elif rows.targets is None:
        kernel = partial(_soft_chunk, temperature=temperature, masked=masked)
    else:
        kernel = partial(_joint_chunk, temperature=temperature, smoothing=smoothing, masked=masked)
    return by_chunks(rows, 3, kernel)


def by_chunks(
    rows: Rows, n_buffers: int, kernel: Callable[[Rows, Sequence[Tensor]], Tensor]
) -> Tensor:
    """The sum of what a kernel gives for some rows at a time, with buffers of their size."""
    n, step = len(rows.student), chunk_rows(rows.student)
    values = []
    with scratch(n_buffers, step, rows.student) as buffers:
        for start in range(0, n, step):
            part = rows if step == n else rows.part(start, start + step)
            fitting = buffers if start + step <= n else [b[: n - start] for b in buffers]
            values.append(kernel(part, fitting))
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _label_chunk(rows: Rows, buffers: Sequence[Tensor], smoothing: float, masked: bool) -> Tensor:
    """Cross-entropy alone."""
    u, spare = buffers[:2]
    shift(rows.student, 1.0, u)
    mass, picked = _picked(rows, u, smoothing, spare, masked)
    z = u.exp_().sum(1, keepdim=True)
    if rows.grad is not None:
        g = place(rows, spare)
        torch.mul(u, _share(rows.label, mass, z), out=g)
        _finish(rows, g, smoothing)
    return _total(rows, _ce(z, mass, picked, 1.0).mul_(rows.label), None, None, 1.0)


def _soft_chunk(rows: Rows, buffers: Sequence[Tensor], temperature: float, masked: bool) -> Tensor:
    """The teacher's term alone."""
    u, v, p = buffers
    shift(rows.student, temperature, u)
    z_teacher, inner = _compare(rows, u, v, p, temperature, masked)
    z = u.exp_().sum(1, keepdim=True)
    if rows.grad is not None:
        g = torch.addcmul(p, u, rows.soft.div(z), out=place(rows, p))
        _finish(rows, g, 0.0)
    return _total(rows, None, z.div_(z_teacher).log_().mul_(rows.soft), inner, temperature)


def _joint_chunk(
    rows: Rows, buffers: Sequence[Tensor], temperature: float, smoothing: float, masked: bool
) -> Tensor:
    """Both terms."""
    u, v, p = buffers
    shift(rows.student, temperature, u)
    z_teacher, inner = _compare(rows, u, v, p, temperature, masked)
    mass, picked = _picked(rows, u, smoothing, v, masked)
    hard = v  # exp(u)^T, unless T is 1; v has served
    _exponentials(u, temperature, hard)
    z = u.sum(1, keepdim=True)
    z_label = z if temperature == 1.0 else hard.sum(1, keepdim=True)
    if rows.grad is not None:
        label, soft = _share(rows.label, mass, z_label), rows.soft.div(z)
        if z_label is z:
            soft.add_(label)
        else:
            p.addcmul_(hard, label)
        g = torch.addcmul(p, u, soft, out=place(rows, p))
        _finish(rows, g, smoothing)
    ce = _ce(z_label, mass, picked, temperature).mul_(rows.label)
    return _total(rows, ce, z.div(z_teacher).log_().mul_(rows.soft), inner, temperature)


def shift(logits: Tensor, temperature: float, out: Tensor) -> None:
    """(logits - max)/T in the precision of ``out``."""
    top = logits.amax(1, keepdim=True)
    if logits.dtype != out.dtype:
        logits, top = out.copy_(logits), top.to(out.dtype)
    # One pass instead of two; a class at -inf stays there.
    top.mul_(_constant(-1.0 / temperature, out.dtype))
    torch.add(top, logits, alpha=1.0 / temperature, out=out)


@lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor, which torch takes on any device, and faster than a Python number."""
    return torch.tensor(value, dtype=dtype)


def _compare(
    rows: Rows, u: Tensor, v: Tensor, p: Tensor, temperature: float, masked: bool
) -> tuple[Tensor | float, Tensor]:
    """Z_t and b T sum_c p_c (v_c - u_c), by row if wanted so; ``p`` becomes -b T p."""
    z_teacher: Tensor | float = 1.0
    teacher, lse = rows.teacher, rows.teacher_lse
    if lse is None:
        shift(teacher, temperature, v)  # type: ignore[arg-type]
        z_teacher = torch.exp(v, out=p).sum(1, keepdim=True)
    else:
        torch.add(lse.neg(), teacher, alpha=1.0 / temperature, out=v)  # type: ignore[arg-type]
        torch.exp(v, out=p)
    p.mul_(rows.soft.div(z_teacher).neg_())
    torch.sub(u, v, out=v)
    if masked:
        v.nan_to_num_(0.0, 0.0, -math.inf)
    if rows.each is None:
        return z_teacher, torch.dot(p.view(-1), v.view(-1))
    return z_teacher, v.mul_(p).sum(1, keepdim=True)


def _picked(
    rows: Rows, u: Tensor, smoothing: float, spare: Tensor, masked: bool
) -> tuple[Tensor | None, Tensor]:
    """Total probability of each row's target (None for 1), and its mean of u."""
    targets = rows.targets
    assert targets is not None  # noqa: S101
    if targets.is_floating_point():
        product = torch.mul(targets, u, out=spare).nan_to_num_(0.0, math.inf, -math.inf)
        return targets.sum(1, keepdim=True), product.sum(1, keepdim=True)
    picked = u.gather(1, targets)
    if smoothing:
        on, off = target_values(smoothing, u.shape[1])
        picked.mul_(on - off).add_(u.sum(1, keepdim=True), alpha=off)
    if masked:  # an ignored row points at a class that may be off, and 0 * inf is NaN
        picked.masked_fill_(rows.label == 0, 0.0)
    return None, picked


def target_values(smoothing: float, n_classes: int) -> tuple[float, float]:
    """Target probability of the label and of every other class."""
    return 1.0 - smoothing, smoothing / (n_classes - 1) if smoothing else 0.0


def _ce(z: Tensor, mass: Tensor | None, picked: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each row, (n, 1)."""
    log_z = z.log()
    if mass is not None:
        log_z.mul_(mass)
    return log_z.add_(picked, alpha=-temperature)


def _share(label: Tensor, mass: Tensor | None, z: Tensor) -> Tensor:
    """Factor of exp(u)^T in the gradient of the label term."""
    return label.div(z) if mass is None else label.mul(mass).div_(z)


def n_squarings(temperature: float) -> int:
    """How many squarings make exp(u)^T from exp(u), for T = 2, 4, 8; 0 where there are none."""
    return {2.0: 1, 4.0: 2, 8.0: 3}.get(temperature, 0)


def _exponentials(u: Tensor, temperature: float, out: Tensor) -> None:
    """exp(u) in its own place and, unless T is 1, exp(u)^T in ``out``."""
    squarings = n_squarings(temperature)
    if squarings:
        u.exp_()
        torch.mul(u, u, out=out)
        for _ in range(squarings - 1):
            out.mul_(out)
    else:
        if temperature != 1.0:
            torch.mul(u, temperature, out=out).exp_()
        u.exp_()


def place(rows: Rows, spare: Tensor) -> Tensor:
    """Where the gradient is built: in its own place unless that has less precision."""
    fits = rows.grad is not None and rows.grad.dtype == spare.dtype
    return rows.grad if fits else spare  # type: ignore[return-value]


def put(rows: Rows, g: Tensor) -> None:
    """The gradient, to its place if it was built elsewhere."""
    if rows.grad is not None and g is not rows.grad:
        rows.grad.copy_(g)


def _finish(rows: Rows, g: Tensor, smoothing: float) -> None:
    """Takes the targets off the gradient and puts it in its place."""
    targets = rows.targets
    if targets is not None and targets.is_floating_point():
        g.addcmul_(targets, rows.label, value=-1.0)
    elif targets is not None:
        off_target = rows.label.neg()
        if smoothing:
            on, off = target_values(smoothing, g.shape[1])
            g.add_(off_target, alpha=off)
            off_target.mul_(on - off)
        g.scatter_add_(1, targets, off_target)
    put(rows, g)


def _total(
    rows: Rows, ce: Tensor | None, log_z: Tensor | None, inner: Tensor | None, temperature: float
) -> Tensor:
    """Sum of the rows' losses, which are stored if wanted; ``log_z + inner`` is KL times b T."""
    if log_z is None or inner is None:
        assert ce is not None  # noqa: S101
        loss = ce
    elif rows.each is None:
        value = log_z.sum().add_(inner)
        return value.mul_(temperature) if ce is None else ce.sum().add_(value, alpha=temperature)
    else:
        loss = log_z.add_(inner).mul_(temperature)
        loss = loss if ce is None else loss.add_(ce)
    if rows.each is not None:
        rows.each.copy_(loss.squeeze(1))
    return loss.sum()
