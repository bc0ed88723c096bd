"""Decoupled KD, reverse KL and Jensen-Shannon, value and gradient together, a few rows at a time.

For one row with q = softmax(s/T), p = softmax(t/T) and m = (p + q)/2, of T^2 times the divergence

    reverse KL:      dL/ds_j = T q_j (log(q_j/p_j) - KL(q||p))
    Jensen-Shannon:  dL/ds_j = T/2 q_j (log(q_j/m_j) - KL(q||m))
    DKD, label y:    dL/ds_y = T a (q_y - p_y)
                     dL/ds_j = T ((b - a (q_y - p_y)) q^_j - b p^_j),  j != y

where q^ and p^ are q and p without y, renormalised, and a and b weight the binary divergence and
that of q^ and p^. The probability of y comes from its logit against all others, x = s_y/T -
logsumexp_{j != y} s_j/T: q_y = sigmoid(x) and q_y - p_y = q_y (1 - p_y) - p_y (1 - q_y) are exact
to the last digits where q_y and p_y round to 1. ``divergences`` has the definitions.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.losses.fused.autograd import keep, kept, refuse_second_derivative
from fskd.losses.fused.chunks import Rows, by_chunks, place, put
from fskd.losses.fused.kernels import shift
from fskd.losses.fused.objective import scale
from fskd.losses.targets import IGNORED

Impl = Literal["auto", "reference", "eager"]

# Up to this many logits reverse KL by torch's own log-softmax, which is fewer calls, wins.
SMALL = 1 << 15


class Divergence(NamedTuple):
    """What is computed.

    Attributes:
        name: Which, as the public function is called.
        temperature: T > 0.
        target_weight: a of DKD.
        non_target_weight: b of DKD.
    """

    name: Literal["dkd_loss", "reverse_kl", "jensen_shannon"]
    temperature: float
    target_weight: float = 0.0
    non_target_weight: float = 0.0


class FusedDivergence(torch.autograd.Function):
    """Computes the gradient with the loss, and again if it is asked for twice."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, targets: Tensor | None, kind: Divergence
    ) -> Tensor:
        loss, ctx.grad = compute(student, teacher, targets, kind, True)
        keep(ctx, (student, teacher, targets))
        ctx.kind = kind
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(ctx.kind.name)
        grad, ctx.grad = ctx.grad, None  # a kept reference would make autograd copy it
        if grad is None:
            student, teacher, targets = kept(ctx)
            grad = compute(student, teacher, targets, ctx.kind, True)[1]
        return scale(grad, upstream), None, None, None


def compute(
    student: Tensor, teacher: Tensor, targets: Tensor | None, kind: Divergence, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean over rows and its gradient.

    On a CPU a class that is -inf in both logits shows as NaN, so that looking for it costs nothing.

    Args:
        student: Logits (B, C).
        teacher: Logits (B, C), without gradient.
        targets: Labels (B,), -100 for rows that do not count; None where there are none.
        kind: What is computed.
        want_grad: Whether the gradient is wanted.

    Returns:
        Scalar in at least float32, and (B, C) in the student's precision.
    """
    on_cpu, grad = student.device.type == "cpu", None
    small = kind.name == "reverse_kl" and on_cpu and student.numel() <= SMALL
    if small and student.dtype == teacher.dtype:
        made = _small_reverse_kl(student, teacher, kind.temperature)
        if not math.isnan(made[0].item()):
            return made
    if want_grad:
        grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    rows = _rows(student, teacher, targets, kind, grad)
    loss = run(rows, kind, masked=not on_cpu)
    if on_cpu and math.isnan(loss.item()):
        loss = run(rows, kind, masked=True)
    return loss, grad


def run(rows: Rows, kind: Divergence, masked: bool) -> Tensor:
    """The sum of the weighted losses of all rows; fills ``rows.grad``.

    Args:
        rows: ``label`` is T a and ``soft`` is T b, or T, times the weight of each row.
        kind: What is computed.
        masked: Whether a class may be -inf in both logits; it adds 0 then, not NaN.
    """
    kernels = {
        "dkd_loss": (_dkd, 3),
        "reverse_kl": (_reverse_kl, 3),
        "jensen_shannon": (_jensen_shannon, 5),
    }
    kernel, n_buffers = kernels[kind.name]
    chosen = partial(kernel, temperature=kind.temperature, masked=masked)
    return torch.stack(by_chunks(rows, n_buffers, chosen)).sum()


def _rows(
    student: Tensor, teacher: Tensor, targets: Tensor | None, kind: Divergence, grad: Tensor | None
) -> Rows:
    """The rows with their weights, whose sum is 1."""
    exact = torch.promote_types(student.dtype, torch.float32)
    n, t = len(student), kind.temperature
    if targets is None:
        column = torch.full((n, 1), t / n, dtype=exact, device=student.device)
        return Rows(student, teacher, None, column, column, grad)
    targets = targets.long().unsqueeze(1)
    known = targets != IGNORED
    weight = known.to(exact)
    weight.div_(weight.sum().clamp_(min=1.0))
    return Rows(
        student,
        teacher,
        targets * known,
        weight * (t * kind.target_weight),
        weight * (t * kind.non_target_weight),
        grad,
    )


def _small_reverse_kl(
    student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Mean of T^2 KL(q || p) and its gradient, in as few calls as possible."""
    n, exact = len(student), torch.promote_types(student.dtype, torch.float32)
    scaled = torch.stack((student, teacher)).to(exact).mul_(1.0 / temperature)
    log_q, log_p = F.log_softmax(scaled, dim=2).unbind()
    q = log_q.exp()
    g = torch.sub(log_q, log_p).mul_(q)
    kl = g.sum(1, keepdim=True)
    g.addcmul_(q, kl, value=-1.0).mul_(temperature / n)
    return kl.sum().mul_(temperature * temperature / n), g.to(student.dtype)


def _reverse_kl(rows: Rows, buffers: Sequence[Tensor], temperature: float, masked: bool) -> Tensor:
    """T^2 KL(q || p)."""
    q, v, p = buffers
    p = place(rows, p)  # which becomes the gradient
    shift(rows.student, temperature, q)
    shift(rows.teacher, temperature, v)  # type: ignore[arg-type]
    z_teacher = torch.exp(v, out=p).sum(1, keepdim=True)
    ratio = torch.sub(q, v, out=v)
    z = q.exp_().sum(1, keepdim=True)
    if masked:
        ratio.masked_fill_(q == 0, 0.0)
    q.div_(z)
    g = torch.mul(q, ratio, out=p)
    inner = g.sum(1, keepdim=True)
    if rows.grad is not None:
        g.addcmul_(q, inner, value=-1.0).mul_(rows.soft)
        put(rows, g)
    return inner.add_(z_teacher.div_(z).log_()).mul_(rows.soft).sum().mul_(temperature)


def _jensen_shannon(
    rows: Rows, buffers: Sequence[Tensor], temperature: float, masked: bool
) -> Tensor:
    """T^2 (KL(p || m) + KL(q || m))/2."""
    u, v, q, p, spare = buffers
    spare = place(rows, spare)  # which becomes the gradient
    shift(rows.student, temperature, u)
    shift(rows.teacher, temperature, v)  # type: ignore[arg-type]
    z = torch.exp(u, out=q).sum(1, keepdim=True)
    z_teacher = torch.exp(v, out=p).sum(1, keepdim=True)
    q.div_(z)
    p.div_(z_teacher)
    # Where both round to 0 the logarithm is finite, and what it is multiplied with is 0.
    log_2m = torch.add(q, p, out=spare).clamp_(min=torch.finfo(q.dtype).tiny).log_()
    u.sub_(log_2m)
    v.sub_(log_2m)
    if masked:
        u.masked_fill_(q == 0, 0.0)
        v.masked_fill_(p == 0, 0.0)
    from_teacher = v.mul_(p).sum(1, keepdim=True)
    g = torch.mul(q, u, out=spare)
    from_student = g.sum(1, keepdim=True)
    if rows.grad is not None:
        g.addcmul_(q, from_student, value=-1.0).mul_(rows.soft * 0.5)
        put(rows, g)
    log_z = z.mul_(z_teacher).log_()
    mean = from_teacher.add_(from_student).sub_(log_z).mul_(0.5).add_(math.log(2.0))
    return mean.mul_(rows.soft).sum().mul_(temperature)


def _dkd(rows: Rows, buffers: Sequence[Tensor], temperature: float, masked: bool) -> Tensor:
    """T^2 (a binary KL + b KL(p^ || q^)); q is q^, p is p^."""
    v, p, q = buffers
    q = place(rows, q)  # which becomes the gradient
    label, targets = rows.label, rows.targets
    assert targets is not None  # noqa: S101
    own = _without_label(rows.student, targets, temperature, q)
    own_teacher = _without_label(rows.teacher, targets, temperature, v)  # type: ignore[arg-type]
    z_teacher = torch.exp(v, out=p).sum(1, keepdim=True)
    ratio = v.sub_(q).scatter_(1, targets, 0.0)
    z = q.exp_().sum(1, keepdim=True)
    if masked:
        ratio.masked_fill_(p == 0, 0.0)
    log_z, log_z_teacher = z.log(), z_teacher.log()
    binary, push = _binary(own.sub_(log_z), own_teacher.sub_(log_z_teacher), masked)
    p.mul_(rows.soft.div(z_teacher))
    others = torch.dot(p.view(-1), ratio.view(-1))
    if rows.grad is not None:
        push.mul_(label)
        g = q.mul_(rows.soft.sub(push).div_(z)).sub_(p)
        g.scatter_(1, targets, push)
        put(rows, g)
    by_row = binary.mul_(label).addcmul_(log_z.sub_(log_z_teacher), rows.soft)
    return by_row.sum().add_(others).mul_(temperature)


def _without_label(logits: Tensor, targets: Tensor, temperature: float, out: Tensor) -> Tensor:
    """(logits - max)/T in ``out`` with -inf at the label, and the label's own, (n, 1).

    The maximum is that of the other classes, one of which may be far below the label.
    """
    out.copy_(logits)
    own = out.gather(1, targets)
    top = out.scatter_(1, targets, -math.inf).amax(1, keepdim=True)
    own.sub_(top).div_(temperature)
    torch.add(top.mul_(-1.0 / temperature), out, alpha=1.0 / temperature, out=out)
    return own


def _binary(x: Tensor, x_teacher: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """KL of label against rest from the logits of both, and q_y - p_y, each (n, 1)."""
    signed = torch.stack((x, -x, x_teacher, -x_teacher))
    log, probs = F.logsigmoid(signed), signed.sigmoid_()
    ratio = log[2:].sub_(log[:2])
    if masked:
        ratio.masked_fill_(probs[2:] == 0, 0.0)
    q, not_q, p, not_p = probs.unbind()
    return ratio.mul_(probs[2:]).sum(0), q.mul(not_p).addcmul_(p, not_q, value=-1.0)
