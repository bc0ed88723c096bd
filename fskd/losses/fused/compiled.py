"""The fused objective as one function compiled by torch's Inductor, one variant per shape.

The compiled code is called without the guards of ``torch.compile``, which on small logits cost more
than the arithmetic; the key of a variant holds everything that they would check.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.losses.fused.chunks import Rows
from fskd.losses.fused.kernels import MOST_SUM, n_squarings
from fskd.losses.targets import IGNORED

Variant = Callable[..., Sequence[Tensor]]  # the loss and, unless it has a place, the gradient
Place = Literal["none", "new", "given"]  # of the gradient

# To compile, on a CPU: 3 for a variant, and once a process 2 to 14 more, by what torch has cached.
TYPICAL_SECONDS = 8.0
MAX_VARIANTS = 32  # a loop whose shape or temperature keeps changing goes on eagerly
ALIGNED = 16  # bytes; generated code may assume it on GPUs


class Kind(NamedTuple):
    """What distinguishes variants beside their tensors.

    Attributes:
        temperature: T.
        n_real: How many rows have a label; the rows after them have none.
        mean: Whether the label's weights are those of a mean, in which ignored rows do not count.
        apart: Whether the two terms are wanted, or their sum.
        place: Whether the gradient is wanted, and whether its place is the last argument.
    """

    temperature: float
    n_real: int
    mean: bool
    apart: bool
    place: Place


_variants: dict[tuple[Any, ...], Variant] = {}
_hopeless: set[str] = set()  # device types without a working compiler, which is said once
_lock = threading.Lock()
_log = logging.getLogger("fskd")


def covers(rows: Rows, smoothing: float) -> bool:
    """Whether there can be a variant for these rows."""
    if (
        rows.teacher is None
        or rows.each is not None
        or rows.teacher_lse is not None
        or smoothing > 0
        or (rows.targets is not None and rows.targets.is_floating_point())
    ):
        return False
    tensors = (rows.student, rows.teacher, rows.targets, rows.grad)
    return all(x is None or (x.is_contiguous() and x.data_ptr() % ALIGNED == 0) for x in tensors)


def run(rows: Rows, temperature: float, mean: bool) -> Tensor | None:
    """As ``kernels.run`` for rows that are covered; None without compiler or with many variants.

    Ignored labels need no care before. One that is no class, and on a CPU logits that are far
    apart, make the loss one that is not finite.
    """
    made = _made(rows, temperature, mean, apart=False)
    return None if made is None else made[0]


def terms(rows: Rows, temperature: float) -> tuple[Tensor | None, Tensor] | None:
    """As ``kernels.terms``; None as in ``run``."""
    made = _made(rows, temperature, mean=False, apart=True)
    if made is None:
        return None
    return None if rows.targets is None else made[0], made[-1]


def _made(rows: Rows, temperature: float, mean: bool, apart: bool) -> Sequence[Tensor] | None:
    """What a variant gives for these rows."""
    student, teacher = rows.student, cast(Tensor, rows.teacher)
    arguments: tuple[Tensor, ...] = (student, teacher, rows.soft)
    if rows.targets is not None:
        arguments += (
            rows.targets.squeeze(1),
            rows.label,
            class_numbers(student.shape[1], student.device),
        )
    if rows.grad is not None:
        arguments += (rows.grad,)
    n_real = 0 if rows.targets is None else len(student)
    kind = Kind(temperature, n_real, mean, apart, "none" if rows.grad is None else "given")
    variant = _find(kind, arguments)
    return None if variant is None else variant(*arguments)


class Usual:
    """Loss and gradient of a whole call, with as little around it as possible.

    Args:
        label: Weight of each row's cross-entropy, (n, 1); that of generated rows is not read.
        soft: T times the weight of each row's T^2 KL, (n, 1).
        temperature: T.
        mean: Whether these are the weights of a mean.
        n_classes: C.
    """

    def __init__(
        self, label: Tensor, soft: Tensor, temperature: float, mean: bool, n_classes: int
    ) -> None:
        self.label, self.soft, self.temperature, self.mean = label, soft, temperature, mean
        self.classes = class_numbers(n_classes, label.device)
        self.variants: dict[Place, Variant] = {}

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Both for logits (n, C) and classes (B,); None where there is no variant for them."""
        if not (student.is_contiguous() and teacher.is_contiguous() and targets.is_contiguous()):
            return None
        place: Place = "new" if out is None else "given"
        arguments: tuple[Tensor, ...]
        arguments = (student, teacher, self.soft, targets, self.label, self.classes)
        if out is not None:
            arguments += (out,)
        variant = self.variants.get(place)
        if variant is None:
            kind = Kind(self.temperature, len(targets), self.mean, False, place)
            variant = _find(kind, arguments)
            if variant is None:
                return None
            self.variants[place] = variant
        if out is None:
            loss, grad = variant(*arguments)
            return loss, grad
        return variant(*arguments)[0], out


@lru_cache(maxsize=32)
def class_numbers(n_classes: int, device: torch.device) -> Tensor:
    """0 to C-1, (C,). Compiled code that counts them itself takes longer than all exponentials."""
    return torch.arange(n_classes, dtype=torch.int32, device=device)


def _find(kind: Kind, arguments: tuple[Tensor, ...]) -> Variant | None:
    """The variant for such tensors, compiled if it is new."""
    student = arguments[0]
    dtypes = tuple(x.dtype for x in arguments)
    key = (kind, student.shape, student.device, dtypes, torch.get_num_threads())
    variant = _variants.get(key)
    if variant is not None:
        return variant
    device = student.device.type
    with _lock:
        if key not in _variants and len(_variants) < MAX_VARIANTS and device not in _hopeless:
            made = _compile(kind, arguments)
            if made is None:
                _hopeless.add(device)
            else:
                _variants[key] = made
    return _variants.get(key)


def _compile(kind: Kind, arguments: tuple[Tensor, ...]) -> Variant | None:
    """A new variant; None, with a line in the log, if there is no working compiler."""

    def objective(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _objective(tensors, kind)

    device = arguments[0].device.type
    try:
        from torch._inductor import config, standalone_compile
        from torch._inductor.cpu_vec_isa import pick_vec_isa
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad(), torch.autocast(device, enabled=False):
            # Tensors of their own: two arguments that happen to be one tensor would become one.
            examples = [torch.empty_like(x) for x in arguments]
            graph = make_fx(objective, tracing_mode="fake")(*examples)
            # Inductor's cache on disk does not know for which vectors its code was written; built
            # for others (ATEN_CPU_CAPABILITY, another machine) it runs and gives wrong numbers.
            with config.patch({"cpp.simdlen": pick_vec_isa().bit_width()}):
                made = standalone_compile(
                    graph, list(examples), dynamic_shapes="from_example_inputs"
                )
                first = made(*arguments)
    except Exception as error:  # no C++ compiler, no Triton, another torch: many kinds of failure
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("kd_loss is not compiled (%s); the eager path goes on", reason)
        return None
    return cast(Variant, made) if not isinstance(first, Tensor) else lambda *x: (made(*x),)


def _objective(tensors: tuple[Tensor, ...], kind: Kind) -> tuple[Tensor, ...]:
    """What is wanted of the rows; the formulas are in ``kernels``."""
    student, teacher, soft, *rest = tensors
    (n_rows, n_classes), temperature = student.shape, kind.temperature
    exact = torch.promote_types(student.dtype, torch.float32)
    within = None
    if kind.n_real:
        targets, label, numbers = rest[:3]
        targets = F.pad(targets, (0, n_rows - kind.n_real), value=IGNORED).unsqueeze(1)
        # An index out of range would be a crash; it becomes a loss that is NaN.
        within = targets.clamp(0, n_classes - 1)
        picked = student.gather(1, within).to(exact)
    top, u = _shifted(student, within, temperature, exact)
    v = _shifted(teacher, within, temperature, exact)[1]
    exp_u, exp_v = u.exp(), v.exp()
    z_soft, z_teacher = exp_u.sum(1, keepdim=True), exp_v.sum(1, keepdim=True)
    inner = torch.where(exp_v > 0, exp_v * (v - u), 0.0).sum(1, keepdim=True)
    kl = inner / z_teacher + (z_soft / z_teacher).log()
    loss = kl = soft * kl * temperature
    grad = exp_u * (soft / z_soft) - exp_v * (soft / z_teacher)
    if kind.n_real:
        known = (targets != IGNORED).to(exact)
        label = label * known
        if kind.mean:
            label = label * (kind.n_real / known.sum().clamp(min=1.0))
        power = _power(exp_u, u, temperature)
        z_label = power.sum(1, keepdim=True)
        # An ignored row may point at a class that is off, and 0 * inf is NaN.
        ce = torch.where(label > 0, label * (z_label.log() + top - picked), 0.0)
        right = ((targets == within) | (known == 0)) & (z_label < MOST_SUM)
        ce = ce + torch.where(right, 0.0, math.nan)
        loss = kl + ce
        hit = numbers == targets.to(numbers.dtype)
        grad = grad + power * (label / z_label) - torch.where(hit, label, 0.0)
    if kind.place == "given":
        tensors[-1].copy_(grad)
    if kind.apart and kind.n_real:
        return ce.sum(), kl.sum()
    return (loss.sum(), grad.to(student.dtype)) if kind.place == "new" else (loss.sum(),)


def _shifted(
    logits: Tensor, classes: Tensor | None, temperature: float, exact: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What a row's logits are compared with, and their differences to it over T."""
    if logits.device.type != "cpu":  # where nobody looks whether the loss is finite
        top = logits.amax(1, keepdim=True)
    elif classes is None:
        top = logits[:, :1]
    else:
        top = logits.gather(1, classes)
    top = top.to(exact)
    return top, logits.to(exact) * (1 / temperature) - top * (1 / temperature)


def _power(exp_u: Tensor, u: Tensor, temperature: float) -> Tensor:
    """exp(u)^T, by multiplication where T is a small power of two."""
    squarings = n_squarings(temperature)
    if not squarings and temperature != 1.0:
        return (u * temperature).exp()
    for _ in range(squarings):
        exp_u = exp_u * exp_u
    return exp_u
