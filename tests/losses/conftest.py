"""The objective by loops over rows and classes, and the cases it is compared on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

Options = dict[str, Any]


class Data(NamedTuple):
    """Tensors of a call and its options."""

    student: Tensor
    teacher: Tensor
    targets: Tensor | None
    options: Options


def log_softmax(row: Tensor, temperature: float) -> list[Tensor]:
    """One row, class by class; a class at -inf has no part in the sum."""
    scaled = [z / temperature for z in row]
    top = max(z.item() for z in scaled)
    total = sum((z - top).exp() for z in scaled if z.item() > -math.inf)
    return [z - top - torch.log(total) for z in scaled]


def slow_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL of one row."""
    total = torch.zeros((), dtype=torch.float64)
    known, own = log_softmax(teacher, temperature), log_softmax(student, temperature)
    for log_p, log_q in zip(known, own, strict=True):
        if log_p.item() > -math.inf:
            total = total + log_p.exp() * (log_p - log_q)
    return temperature**2 * total


def slow_ce(student: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of one row with a class or with probabilities."""
    total, n_classes = torch.zeros((), dtype=torch.float64), len(student)
    for c, log_q in enumerate(log_softmax(student, 1.0)):
        if target.is_floating_point():
            share = target[c].item()
        else:
            share = 1 - smoothing if c == target.item() else smoothing / (n_classes - 1)
        if share > 0:
            total = total - share * log_q
    return total


def slow_loss(data: Data) -> Tensor:
    """The whole objective in float64."""
    student, teacher, targets = data.student.double(), data.teacher.detach().double(), data.targets
    options = {
        "temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9, "generated_weight": 1.0,
        "label_smoothing": 0.0, "row_weights": None, "reduction": "mean",
    } | data.options  # fmt: skip
    n_rows, mean = len(student), options["reduction"] == "mean"
    n_real = n_rows if targets is None else len(targets)
    labelled = [
        r for r in range(n_real)
        if targets is not None and (targets.is_floating_point() or targets[r] != -100)
    ]  # fmt: skip
    losses = []
    for r in range(n_rows):
        weight = options["kd_weight"] if r < n_real else options["generated_weight"]
        divisor = n_real if r < n_real else n_rows - n_real
        loss = student[r, -1] * 0.0
        if weight:
            loss = slow_kl(student[r], teacher[r], options["temperature"])
        loss = weight * loss / (divisor if mean else 1)
        if r in labelled and options["ce_weight"]:
            assert targets is not None
            ce = slow_ce(student[r], targets[r], options["label_smoothing"])
            loss = loss + options["ce_weight"] * ce / (len(labelled) if mean else 1)
        factor = 1.0 if options["row_weights"] is None else options["row_weights"][r].item()
        losses.append(factor * loss)
    stacked = torch.stack(losses)
    return stacked if options["reduction"] == "none" else stacked.sum()


def slow(data: Data, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to the student's logits, in float64."""
    student = data.student.detach().double().requires_grad_()
    loss = slow_loss(data._replace(student=student))
    (grad,) = torch.autograd.grad(
        loss, student, torch.ones_like(loss) if upstream is None else upstream
    )
    return loss.detach(), grad


def make(
    rows: int = 7, classes: int = 5, real: int | None = 7, dtype: torch.dtype = torch.float64,
    scale: float = 2.0, seed: int = 0, **options: Any,
) -> Data:  # fmt: skip
    """Random logits and labels; ``real=None`` leaves the targets out."""
    draw = torch.Generator().manual_seed(seed)
    both = (scale * torch.randn(2, rows, classes, generator=draw)).to(dtype)
    student, teacher = both[0].clone(), both[1].clone()  # aligned, as the compiled path wants it
    targets = None if real is None else torch.randint(classes, (real,), generator=draw)
    return Data(student, teacher, targets, options)


def ignoring(data: Data, share: int) -> Data:
    """Every ``share``-th label taken away."""
    assert data.targets is not None
    targets = data.targets.clone()
    targets[::share] = -100
    return data._replace(targets=targets)


def soft(data: Data) -> Data:
    """Probabilities instead of labels, one of them 0."""
    assert data.targets is not None
    draw = torch.Generator().manual_seed(7)
    probs = torch.rand(len(data.targets), data.student.shape[1], generator=draw).double()
    probs[:, 0] = 0.0
    return data._replace(targets=(probs / probs.sum(1, keepdim=True)).to(data.student.dtype))


def masked(data: Data) -> Data:
    """The class 0 is off in both; labels avoid it."""
    student, teacher = data.student.clone(), data.teacher.clone()
    student[:, 0] = teacher[:, 0] = -math.inf
    targets = data.targets
    if targets is not None:
        targets = torch.where(targets == 0, 1, targets)
    return data._replace(student=student, teacher=teacher, targets=targets)


def apart(data: Data, label: int, factor: float = 1.5) -> Data:
    """Class 0 of the first and last row so far below that the others' exp(s - s_0) overflows.

    With T = 4 their exp((s - s_0)/T) does not, unless the factor is above 4.
    """
    student, teacher = data.student.clone(), data.teacher.clone()
    lowest = -factor * math.log(torch.finfo(torch.promote_types(student.dtype, torch.float32)).max)
    student[::6, 0] = teacher[::6, 0] = lowest
    targets = data.targets
    if targets is not None:
        targets = targets.clone()
        targets[0] = label
    return data._replace(student=student, teacher=teacher, targets=targets)


def moved(data: Data, factor: float) -> Data:
    """All logits moved by a multiple of where exponentials overflow."""
    exact = torch.promote_types(data.student.dtype, torch.float32)
    offset = factor * math.log(torch.finfo(exact).max)
    return data._replace(student=data.student + offset, teacher=data.teacher + offset)


def strided(data: Data) -> Data:
    """Views that are not contiguous."""
    assert data.targets is not None
    return data._replace(
        student=data.student.T.contiguous().T,
        teacher=torch.stack((data.teacher, data.teacher), 2)[..., 0],
        targets=torch.stack((data.targets, data.targets), 1)[:, 0],
    )


WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0, 0.1, 1.5])
CASES: dict[str, Callable[[torch.dtype], Data]] = {
    "usual": lambda d: make(dtype=d),
    "generated": lambda d: make(real=4, dtype=d),
    "one_real": lambda d: make(real=1, dtype=d, generated_weight=0.3),
    "unlabelled": lambda d: make(real=None, dtype=d),
    "sum": lambda d: make(real=4, dtype=d, reduction="sum"),
    "none": lambda d: make(real=4, dtype=d, reduction="none"),
    **{
        f"temperature_{t}": lambda d, t=t: make(real=5, dtype=d, temperature=t)
        for t in (1.0, 2.0, 3.0, 8.0, 0.5)
    },
    "no_label_term": lambda d: make(real=4, dtype=d, ce_weight=0.0),
    "no_teacher_term": lambda d: make(real=4, dtype=d, kd_weight=0.0),
    "no_generated_term": lambda d: make(real=4, dtype=d, generated_weight=0.0),
    "nothing": lambda d: make(real=4, dtype=d, ce_weight=0.0, kd_weight=0.0, generated_weight=0.0),
    "labels_alone": lambda d: make(dtype=d, kd_weight=0.0, label_smoothing=0.2),
    "smoothing": lambda d: make(real=4, dtype=d, label_smoothing=0.1),
    "row_weights": lambda d: make(real=4, dtype=d, row_weights=WEIGHTS),
    "row_weights_none": lambda d: make(real=4, dtype=d, row_weights=WEIGHTS, reduction="none"),
    "ignored": lambda d: ignoring(make(real=6, dtype=d), 3),
    "ignored_none": lambda d: ignoring(make(real=6, dtype=d, reduction="none"), 3),
    "ignored_weights": lambda d: ignoring(make(dtype=d, row_weights=WEIGHTS), 2),
    "ignored_smoothing": lambda d: ignoring(make(real=6, dtype=d, label_smoothing=0.1), 3),
    "ignored_all": lambda d: ignoring(make(real=5, dtype=d), 1),
    "soft": lambda d: soft(make(real=4, dtype=d)),
    "soft_labels_alone": lambda d: soft(make(dtype=d, kd_weight=0.0)),
    "masked": lambda d: masked(make(real=4, dtype=d)),
    "masked_ignored": lambda d: ignoring(masked(make(real=4, dtype=d)), 2),
    "masked_soft": lambda d: soft(masked(make(real=4, dtype=d))),
    "masked_none": lambda d: masked(make(real=4, dtype=d, reduction="none")),
    "apart": lambda d: apart(make(real=4, dtype=d), 0),
    "apart_ignored": lambda d: apart(make(real=4, dtype=d), -100),
    "apart_none": lambda d: apart(make(real=4, dtype=d, reduction="none"), 0),
    "apart_labels_alone": lambda d: apart(make(dtype=d, kd_weight=0.0), 0),
    "far_apart": lambda d: apart(make(real=4, dtype=d), 1, factor=6.0),
    "far_apart_unlabelled": lambda d: apart(make(real=None, dtype=d), 0, factor=6.0),
    **{
        f"moved_{factor}": lambda d, factor=factor: moved(make(real=4, dtype=d), factor)
        for factor in (-1.2, -1.05, -0.99, -0.95, 0.95, 1.05, 4.2)
    },
    "two_classes": lambda d: make(classes=2, dtype=d),
    "one_row": lambda d: make(rows=1, real=1, dtype=d),
    "equal": lambda d: make(real=4, dtype=d, scale=0.0),
    "large": lambda d: make(real=4, dtype=d, scale=1e4),
    "strided": lambda d: strided(make(real=6, dtype=d)),
}  # fmt: skip


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Callable[[torch.dtype], Data]:
    """One case after another, of any precision."""
    return CASES[request.param]


@pytest.fixture
def twin() -> Callable[..., tuple[Tensor, Tensor]]:
    """Loss and gradient by loops."""
    return slow


def check(data: Data, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Loss and gradient in float32, or a gradient rounded to less, against float64.

    Logits of size m, scaled, are off by up to eps m/T, and so are the exponents; T^2 KL and
    cross-entropy have weights of about 1. That is the first part of the loss's bound, a few
    roundings of itself the second. A probability is off by as much as its exponent, and then by a
    few roundings: the bound of a gradient, which is a difference of such, each with the weight of a
    row, and may be far smaller than they are.
    """
    eps, kept = torch.finfo(torch.float32).eps, torch.finfo(found[1].dtype).eps
    temperature = data.options.get("temperature", 4.0)
    weight = data.options.get("row_weights", torch.ones(1)).max().item()
    n_rows = len(data.student)
    n_real = n_rows if data.targets is None else len(data.targets)
    of_a_row = weight / min(n for n in (n_real, n_rows - n_real) if n)
    if data.options.get("reduction") in ("sum", "none"):
        of_a_row, weight = weight, weight * n_rows
    sizes = [x[x.isfinite()].abs().max().item() for x in (data.student, data.teacher)]
    exponent = eps * max(sizes) / min(temperature, 1.0)
    largest = [x[x.isfinite()].abs().max().item() for x in expected]
    bounds = (
        8 * eps * largest[0] + 2 * weight * max(temperature, 1.0) * exponent,
        (8 * eps + kept + 4 * exponent) * largest[1] + 2 * eps * of_a_row * max(temperature, 1.0),
    )
    for ours, theirs, bound in zip(found, expected, bounds, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


@pytest.fixture
def in_proportion() -> Callable[..., None]:
    """Checks results in float32 by what its rounding may do."""
    return check


@pytest.fixture
def data() -> Callable[..., Data]:
    """Random inputs."""
    return make


@pytest.fixture
def cases() -> dict[str, Callable[[torch.dtype], Data]]:
    """All cases by name."""
    return CASES
