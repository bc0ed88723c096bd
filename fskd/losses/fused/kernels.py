"""Cross-entropy and softened KL, value and gradient together, a few rows at a time.

For one row with u = (s - s_k)/T and v = (t - t_k)/T

    KL = sum_c p_c (v_c - u_c) + log Z_s - log Z_t,    p = exp(v)/Z_t,  q = exp(u)/Z_s
    CE = log Z_1 - T u_y,                              Z_1 = sum_c exp(u_c)^T
    d(a CE + b T^2 KL)/ds = a exp(u)^T/Z_1 + b T q - b T p - a e_y

Every exponential is taken once, into kept scratch. exp(u)^T is a product for T = 2, 4, 8 and a
third exponential otherwise. Nothing here knows autograd.

The class k is the label, or the first class where there is none: to look for the largest logit
takes as long as its exponential. A sum is then at least 1, so that nothing is lost to underflow;
where a class is so far above k that one overflows, or nearly, the loss is made one that is not
finite, and the caller asks again for the ``careful`` way, with k the largest and a place for
classes at -inf.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from fskd.losses.fused.chunks import Rows, by_chunks, place, put

MOST_SUM = 1e30  # of exp(u)^T over the classes


class Sums(NamedTuple):
    """Sums over the classes of some rows, of which their losses are made; None where not needed.

    Attributes:
        inner: b T sum_c p_c (v_c - u_c), (n, 1), or summed over the rows.
        z_teacher: Z_t, (n, 1); None also where ``inner`` has its logarithm.
        z: Z_s, (n, 1).
        z_label: Z_1, (n, 1).
        mass: Total probability of the target, (n, 1); None for 1.
        picked: The target's mean of u, (n, 1).
    """

    inner: Tensor | None = None
    z_teacher: Tensor | None = None
    z: Tensor | None = None
    z_label: Tensor | None = None
    mass: Tensor | None = None
    picked: Tensor | None = None


def run(rows: Rows, temperature: float, smoothing: float = 0.0, careful: bool = False) -> Tensor:
    """The sum of the weighted losses of all rows, scalar; fills ``grad`` and ``each``.

    Args:
        rows: The rows.
        temperature: T > 0.
        smoothing: Share of the label that goes to the K-1 wrong classes.
        careful: Whether logits may be far apart, or a class -inf in both of them, whose
            p (v - u) is 0 then, not NaN.
    """
    ce, kl = terms(rows, temperature, smoothing, careful)
    loss = kl if ce is None else ce if kl is None else ce.add_(kl)
    assert loss is not None  # noqa: S101
    if rows.each is None:
        return loss
    rows.each.copy_(loss.squeeze(1))
    return loss.sum()


def terms(
    rows: Rows, temperature: float, smoothing: float = 0.0, careful: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """As ``run`` with the cross-entropy and T^2 KL apart, by row if ``each`` has a place.

    Returns:
        Scalars or (n, 1), in at least float32; None for the term that the rows lack.
    """
    if rows.teacher is None:
        kernel, temperature = partial(_label_chunk, smoothing=smoothing, careful=careful), 1.0
    elif rows.targets is None:
        kernel = partial(_soft_chunk, temperature=temperature, careful=careful)
    else:
        kernel = partial(
            _joint_chunk, temperature=temperature, smoothing=smoothing, careful=careful
        )
    return _terms(rows, _together(by_chunks(rows, 3, kernel)), temperature)


def _label_chunk(rows: Rows, buffers: Sequence[Tensor], smoothing: float, careful: bool) -> Sums:
    """Cross-entropy alone."""
    u, spare = buffers[:2]
    shift(rows.student, 1.0, u, _reference(rows, rows.student, careful))
    mass, picked = _picked(rows, u, smoothing, spare, careful)
    z = u.exp_().sum(1, keepdim=True)
    if rows.grad is not None:
        g = place(rows, spare)
        torch.mul(u, _share(rows.label, mass, z), out=g)
        _finish(rows, g, smoothing)
    return Sums(z_label=z, mass=mass, picked=picked)


def _soft_chunk(rows: Rows, buffers: Sequence[Tensor], temperature: float, careful: bool) -> Sums:
    """The teacher's term alone."""
    u, v, p = buffers
    p = place(rows, p)  # which becomes the gradient
    shift(rows.student, temperature, u, _reference(rows, rows.student, careful))
    inner, z_teacher = _compare(rows, u, v, p, temperature, careful)
    z = u.exp_().sum(1, keepdim=True)
    if rows.grad is not None:
        _finish(rows, p.addcmul_(u, rows.soft.div(z)), 0.0)
    return Sums(inner, z_teacher, z)


def _joint_chunk(
    rows: Rows, buffers: Sequence[Tensor], temperature: float, smoothing: float, careful: bool
) -> Sums:
    """Both terms."""
    u, v, p = buffers
    p = place(rows, p)  # which becomes the gradient
    shift(rows.student, temperature, u, _reference(rows, rows.student, careful))
    inner, z_teacher = _compare(rows, u, v, p, temperature, careful)
    mass, picked = _picked(rows, u, smoothing, v, careful)
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
        _finish(rows, p.addcmul_(u, soft), smoothing)
    return Sums(inner, z_teacher, z, z_label, mass, picked)


def shift(logits: Tensor, temperature: float, out: Tensor, reference: Tensor | None = None) -> None:
    """(logits - reference)/T in the precision of ``out``; without one, of the largest."""
    if reference is None:
        reference = logits.amax(1, keepdim=True)
    if logits.dtype != out.dtype:
        logits, reference = out.copy_(logits), reference.to(out.dtype)
    # One pass instead of two; a class at -inf stays there.
    scaled = reference.mul(_constant(-1.0 / temperature, out.dtype))
    torch.add(scaled, logits, alpha=1.0 / temperature, out=out)


def _reference(rows: Rows, logits: Tensor, careful: bool) -> Tensor | None:
    """Logits of the classes k, (n, 1); None for the largest."""
    targets = rows.targets
    if careful or (targets is not None and targets.is_floating_point()):
        return None
    return logits[:, :1] if targets is None else logits.gather(1, targets)


@lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor, which torch takes on any device, and faster than a Python number."""
    return torch.tensor(value, dtype=dtype)


def _compare(
    rows: Rows, u: Tensor, v: Tensor, p: Tensor, temperature: float, careful: bool
) -> tuple[Tensor, Tensor | None]:
    """``inner`` and ``z_teacher`` of the sums; ``p`` becomes -b T p."""
    teacher, lse = rows.teacher, rows.teacher_lse
    if lse is None:
        assert teacher is not None  # noqa: S101
        shift(teacher, temperature, v, _reference(rows, teacher, careful))
        z_teacher = torch.exp(v, out=p).sum(1, keepdim=True)
        p.mul_(rows.soft.div(z_teacher).neg_())
    else:
        z_teacher = None
        torch.add(lse.neg(), teacher, alpha=1.0 / temperature, out=v)  # type: ignore[arg-type]
        torch.exp(v, out=p).mul_(rows.soft.neg())
    torch.sub(u, v, out=v)
    if careful:
        v.nan_to_num_(0.0, 0.0, -math.inf)
    # Not torch.dot, whose few running sums lose digits over a whole chunk.
    v.mul_(p)
    return v.sum() if rows.each is None else v.sum(1, keepdim=True), z_teacher


def _picked(
    rows: Rows, u: Tensor, smoothing: float, spare: Tensor, careful: bool
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
    if careful:  # an ignored row points at a class that may be off, and 0 * inf is NaN
        picked.masked_fill_(rows.label == 0, 0.0)
    return None, picked


def target_values(smoothing: float, n_classes: int) -> tuple[float, float]:
    """Target probability of the label and of every other class."""
    return 1.0 - smoothing, smoothing / (n_classes - 1) if smoothing else 0.0


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


def _together(parts: Sequence[Sums]) -> Sums:
    """The sums of all rows."""
    if len(parts) == 1:
        return parts[0]
    columns: list[Tensor | None] = []
    for column in zip(*parts, strict=True):
        if column[0] is None:
            columns.append(None)
        else:
            columns.append(torch.cat(column) if column[0].dim() else torch.stack(column).sum())
    return Sums(*columns)


def _terms(rows: Rows, sums: Sums, temperature: float) -> tuple[Tensor | None, Tensor | None]:
    """Both terms of all rows with their weights."""
    inner, z_teacher, z, z_label, mass, picked = sums
    ce = kl = None
    if z_label is not None and picked is not None:
        # What is divided by more has fewer digits than others, or none.
        ce = z_label.log().masked_fill_(z_label > MOST_SUM, math.nan)
        if mass is not None:
            ce.mul_(mass)
        ce.add_(picked, alpha=-temperature).mul_(rows.label)
        ce = ce.sum() if rows.each is None else ce
    if z is not None and inner is not None:
        kl = (z if z_teacher is None else z.div(z_teacher)).log().mul_(rows.soft)
        kl = kl.sum() if rows.each is None else kl
        kl.add_(inner).mul_(temperature)
    return ce, kl
