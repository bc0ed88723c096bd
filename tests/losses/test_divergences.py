"""Decoupled KD, reverse KL and Jensen-Shannon against loops in float64, by both paths."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from fskd.losses import dkd_loss, jensen_shannon, kl_divergence, reverse_kl
from fskd.losses.fused import chunks
from fskd.losses.fused import divergences as fused_divergences

NAMES = ["dkd", "reverse_kl", "reverse_kl_in_chunks", "jensen_shannon"]
IMPLS = ["reference", "eager"]
TEMPERATURES = [1.0, 4.0, 2.7]
# Of float32 results against the float64 twin. Logits reach 12, so an exponent is off by up to 12
# eps, a difference of two by 24; a value is a few times less than the parts that it is made of.
# T^2 eps is the absolute bound.
EPS = torch.finfo(torch.float32).eps
RTOL, ATOL = 8 * 24 * EPS, 16 * EPS

Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends small logits on the path of large ones where the test's name says so."""
    if "in_chunks" in request.node.name:
        monkeypatch.setattr(fused_divergences, "SMALL", 0)


def bound(name: str, targets: Tensor, **options: Any) -> Loss:
    """A loss as a function of student and teacher."""
    if name == "dkd":
        return partial(dkd_loss, targets=targets, **options)
    return partial(jensen_shannon if name == "jensen_shannon" else reverse_kl, **options)


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((z - top) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def twin(
    name: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float,
    a: float = 1.0, b: float = 8.0,
) -> float:  # fmt: skip
    """The definitions of the papers, row by row and class by class; no class is switched off."""
    total, counted = 0.0, 0
    for s, t, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        if name == "dkd":
            if y == -100:
                continue
            q_rest = softmax(s[:y] + s[y + 1 :], temperature)
            p_rest = softmax(t[:y] + t[y + 1 :], temperature)
            q_others, p_others = (sum(r[:y] + r[y + 1 :]) for r in (q, p))
            total += a * kl([p[y], p_others], [q[y], q_others]) + b * kl(p_rest, q_rest)
        elif name.startswith("reverse_kl"):
            total += kl(q, p)
        else:
            m = [(x + z) / 2 for x, z in zip(p, q, strict=True)]
            total += (kl(p, m) + kl(q, m)) / 2
        counted += 1
    return temperature**2 * total / counted


def draw(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Student (a leaf), teacher and labels."""
    generator = torch.Generator().manual_seed(rows * 1000 + classes)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (rows,), generator=generator)
    student, teacher = (spread * student).to(dtype), (spread * teacher).to(dtype)
    return student.requires_grad_(), teacher, targets


def derivative(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf, teacher)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.fixture
def no_shape_types() -> Iterator[None]:
    """Lets wrong shapes through to the checks that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(1, 2), (1, 7), (5, 3), (17, 13), (64, 100)])
def test_value_is_the_twins(
    shape: tuple[int, int], temperature: float, name: str, impl: str
) -> None:
    student, teacher, targets = draw(*shape)
    loss = bound(name, targets, temperature=temperature, impl=impl)(student, teacher)
    assert loss.dtype == torch.float32
    expected = twin(name, student, teacher, targets, temperature)
    assert loss.item() == pytest.approx(expected, rel=RTOL, abs=ATOL)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_that_of_the_value(temperature: float, name: str, impl: str) -> None:
    student, teacher, targets = draw(4, 5, torch.float64, spread=1.0)
    loss = bound(name, targets, temperature=temperature, impl=impl)
    assert torch.autograd.gradcheck(loss, (student, teacher), fast_mode=False)


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_differentiable_twice_and_fused_says_that_it_is_not(name: str) -> None:
    student, teacher, targets = draw(3, 4, torch.float64, spread=1.0)
    loss = bound(name, targets, temperature=2.0, impl="reference")
    assert torch.autograd.gradgradcheck(loss, (student, teacher))
    fused = bound(name, targets, impl="eager")(student, teacher)
    with pytest.raises(RuntimeError, match="no second derivative; impl='reference'"):
        torch.autograd.grad(fused, student, create_graph=True)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, targets = draw(23, 11)
    loss = bound(name, targets, impl="eager")
    value, grad = derivative(loss, student, teacher)
    monkeypatch.setitem(chunks.CHUNK, "cpu", 5 * 11)  # four chunks of 5 rows and one of 3
    chunked = derivative(loss, student, teacher)
    torch.testing.assert_close(chunked, (value, grad), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_low_precision_is_that_of_the_result_alone(
    dtype: torch.dtype, tolerance: float, name: str, impl: str
) -> None:
    student, teacher, targets = draw(33, 21, dtype)
    loss = bound(name, targets, impl=impl)
    value, grad = derivative(loss, student, teacher)
    exact = derivative(bound(name, targets, impl="reference"), student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact[0].item(), rel=1e-5)
    assert grad.dtype == dtype
    largest = exact[1].abs().max().item()
    torch.testing.assert_close(grad.double(), exact[1], rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("name", NAMES)
def test_precisions_may_differ(name: str) -> None:
    student, teacher, targets = draw(9, 6)
    loss = bound(name, targets, impl="eager")
    value, grad = derivative(loss, student.bfloat16(), teacher.double())
    exact = derivative(loss, student.bfloat16().double(), teacher.double())
    assert value.item() == pytest.approx(exact[0].item(), rel=1e-5)
    torch.testing.assert_close(grad.double(), exact[1], rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype: torch.dtype, scale: float, name: str, impl: str) -> None:
    student, teacher, targets = draw(16, 9, torch.float64)
    student = (student.sign() * scale).to(dtype)
    teacher = (teacher.sign() * scale).to(dtype)
    value, grad = derivative(bound(name, targets, impl=impl), student, teacher)
    exact = derivative(bound(name, targets, impl="reference"), student.double(), teacher.double())
    assert torch.isfinite(exact[1]).all()
    assert value.item() == pytest.approx(exact[0].item(), rel=1e-5)
    largest = exact[1].abs().max().item()
    rtol = 8e-3 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(grad.double(), exact[1], rtol=rtol, atol=1e-5 * largest)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("label_gap", [-60.0, 60.0])
def test_dkd_where_label_or_rest_rounds_to_zero(label_gap: float, impl: str) -> None:
    """q_y and p_y, or 1-q_y and 1-p_y, are near 1e-26: the closed form keeps all digits."""
    student = torch.tensor([[label_gap, 0.0, 1.0]])
    teacher = torch.tensor([[label_gap + 2.0, 0.5, 0.0]])
    loss = bound(
        "dkd", torch.tensor([0]), temperature=1.0, target_weight=1.0, non_target_weight=0.0,
        impl=impl,
    )  # fmt: skip
    value, grad = derivative(loss, student, teacher)
    sign = math.copysign(1.0, label_gap)
    # The rare side's log-odds from the logits, in float64.
    rare_q = math.exp(-sign * (label_gap - math.log(1 + math.e)))
    rare_p = math.exp(-sign * (label_gap + 2.0 - math.log(math.exp(0.5) + 1)))
    expected = rare_p * math.log(rare_p / rare_q) + rare_q - rare_p
    # q_y - p_y to second order, which is far below the tolerance
    push = sign * (rare_p - rare_q)
    assert grad[0, 0].item() == pytest.approx(push, rel=1e-4, abs=0.0)
    # The value's own terms cancel when the rare side is the label: it is exact to 1e-7 of them.
    assert value.item() == pytest.approx(expected, rel=1e-3, abs=rare_p * 1e-3)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_equal_logits_cost_nothing(shift: float, name: str, impl: str) -> None:
    logits, targets = torch.full((3, 5), shift), torch.tensor([0, 4, 2])
    value, grad = derivative(bound(name, targets, temperature=3.0, impl=impl), logits, logits)
    assert abs(value.item()) < 1e-5
    assert grad.abs().max().item() < 1e-6


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [0, 3])
def test_class_that_is_off_in_both_is_as_if_absent(label: int, name: str, impl: str) -> None:
    student, teacher, _ = draw(6, 5)
    targets = torch.full((6,), label)
    exact = derivative(bound(name, targets, impl=impl), student, teacher)
    wide_student, wide_teacher = (
        torch.cat((x.detach()[:, :1], torch.full((6, 2), -math.inf), x.detach()[:, 1:]), 1)
        for x in (student, teacher)
    )
    wide = torch.where(targets > 0, targets + 2, targets)
    value, grad = derivative(bound(name, wide, impl=impl), wide_student, wide_teacher)
    torch.testing.assert_close(value, exact[0])
    assert (grad[:, 1:3] == 0).all()
    torch.testing.assert_close(grad[:, [0, 3, 4, 5, 6]], exact[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_dkd_label_that_is_off_in_both(impl: str) -> None:
    student, teacher, _ = draw(2, 4)
    student, teacher = student.detach().clone(), teacher.clone()
    student[:, 1] = teacher[:, 1] = -math.inf
    value, grad = derivative(bound("dkd", torch.tensor([1, 1]), impl=impl), student, teacher)
    rest = [0, 2, 3]
    expected = 8.0 * 16.0 * sum(
        kl(softmax(t, 4.0), softmax(s, 4.0))
        for s, t in zip(student[:, rest].tolist(), teacher[:, rest].tolist(), strict=True)
    ) / 2  # fmt: skip
    assert value.item() == pytest.approx(expected, rel=RTOL)
    assert (grad[:, 1] == 0).all()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_class_off_in_one_network_alone(impl: str) -> None:
    one, other, targets = draw(3, 4)
    off = one.detach().clone()
    off[:, 2] = -math.inf
    for student, teacher in ((off, other), (other, off)):
        value, grad = derivative(bound("jensen_shannon", targets, impl=impl), student, teacher)
        assert 0 < value.item() <= 16 * math.log(2)
        assert torch.isfinite(grad).all()
    value, grad = derivative(bound("reverse_kl", targets, impl=impl), off, other)
    assert math.isfinite(value.item())
    assert (grad[:, 2] == 0).all()
    assert bound("reverse_kl", targets, impl=impl)(other, off).item() == math.inf
    assert bound("dkd", torch.tensor([0, 1, 3]), impl=impl)(off, other).item() == math.inf


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(name: str) -> None:
    student, teacher, targets = draw(3, 4)
    student = student.detach().clone()
    student[1, 2] = math.nan
    assert math.isnan(bound(name, targets, impl="eager")(student, teacher).item())


@pytest.mark.parametrize("impl", IMPLS)
def test_dkd_leaves_out_rows_without_label(impl: str) -> None:
    student, teacher, targets = draw(6, 5)
    some = targets.clone()
    some[[1, 4]] = -100
    value, grad = derivative(bound("dkd", some, impl=impl), student, teacher)
    assert value.item() == pytest.approx(twin("dkd", student, teacher, some, 4.0), rel=RTOL)
    known = some != -100
    alone = derivative(bound("dkd", some[known], impl=impl), student[known], teacher[known])
    torch.testing.assert_close((value, grad[known]), alone)
    assert (grad[~known] == 0).all()
    none = torch.full((6,), -100)
    assert dkd_loss(student, teacher, none, impl=impl).item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_dkd_reduces_to_kl(impl: str) -> None:
    """KL = binary + (1 - p_y) * others, row by row: equation 7 of the paper."""
    student, teacher, targets = draw(1, 6, torch.float64)
    p_label = softmax(teacher[0].tolist(), 2.0)[targets.item()]
    loss = dkd_loss(student, teacher, targets, 2.0, 1.0, 1.0 - p_label, impl=impl)
    torch.testing.assert_close(loss, kl_divergence(student, teacher, 2.0))
    pair, other, label = draw(4, 2, torch.float64)
    binary = dkd_loss(pair, other, label, 2.0, 1.0, 123.0, impl=impl)
    torch.testing.assert_close(binary, kl_divergence(pair, other, 2.0))


@pytest.mark.parametrize("impl", IMPLS)
def test_jensen_shannon_is_symmetric_and_bounded(impl: str) -> None:
    student, teacher, _ = draw(5, 7, torch.float64, spread=100.0)
    there = jensen_shannon(student, teacher, 1.0, impl=impl)
    torch.testing.assert_close(there, jensen_shannon(teacher, student, 1.0, impl=impl))
    assert 0 < there.item() <= math.log(2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("upstream", [-2.5, 0.0])
def test_upstream_gradient(upstream: float, name: str) -> None:
    student, teacher, targets = draw(600, 500)  # enough to be looked at for a factor of 1
    loss = bound(name, targets, impl="eager")
    _, grad = derivative(loss, student, teacher)
    loss(student, teacher).mul(upstream).backward()
    torch.testing.assert_close(student.grad, upstream * grad)


@pytest.mark.parametrize("name", NAMES)
def test_backward_twice(name: str) -> None:
    student, teacher, targets = draw(8, 5)
    value = bound(name, targets, impl="eager")(student, teacher)
    value.backward(retain_graph=True)
    assert student.grad is not None
    first = student.grad.clone()
    value.mul(3.0).backward()
    torch.testing.assert_close(student.grad, 4.0 * first)


@pytest.mark.parametrize("name", NAMES)
def test_teacher_is_constant_and_inputs_stay(name: str) -> None:
    student, teacher, targets = draw(7, 5)
    teacher.requires_grad_()
    copies = student.detach().clone(), teacher.detach().clone(), targets.clone()
    for impl in IMPLS:
        bound(name, targets, impl=impl)(student, teacher).backward()
        assert teacher.grad is None
        assert not bound(name, targets, impl=impl)(student.detach(), teacher).requires_grad
    for now, before in zip((student, teacher, targets), copies, strict=True):
        assert torch.equal(now.detach(), before)


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter(name: str) -> None:
    student, teacher, targets = draw(12, 10)
    loss = bound(name, (targets % 5)[::2], impl="eager")
    expected = derivative(loss, student[::2, ::2].contiguous(), teacher[::2, 1::2].contiguous())
    torch.testing.assert_close(derivative(loss, student[::2, ::2], teacher[::2, 1::2]), expected)
    transposed = student[::2, ::2].t().contiguous().t()
    torch.testing.assert_close(derivative(loss, transposed, teacher[::2, 1::2]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_transforms_take_the_reference(name: str) -> None:
    student, teacher, targets = draw(6, 5)
    _, grad = derivative(bound(name, targets, impl="eager"), student, teacher)
    loss = bound(name, targets)
    torch.testing.assert_close(torch.func.grad(loss)(student.detach(), teacher), grad)
    rows = torch.func.vmap(
        lambda s, t, y: bound(name, y[None])(s[None], t[None]), in_dims=(0, 0, 0)
    )(student.detach(), teacher, targets)
    torch.testing.assert_close(rows.mean(), loss(student, teacher).detach())
    with pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func; impl"):
        torch.func.grad(bound(name, targets, impl="eager"))(student.detach(), teacher)


TRACED = """
import torch
from fskd.losses import dkd_loss, jensen_shannon, reverse_kl
student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
student.requires_grad_()
targets = torch.tensor([0, 4, 1, 2, 3, 0])
for loss, rest in ((dkd_loss, (targets,)), (reverse_kl, ()), (jensen_shannon, ())):
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    values = [f(student, teacher, *rest) for f in (compiled, loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*[torch.autograd.grad(value, student) for value in values])
"""


def test_traced_by_a_compiler() -> None:
    """In a process of its own, because shape types are not traced."""
    subprocess.run([sys.executable, "-c", TRACED], check=True, timeout=120)


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
@pytest.mark.parametrize(("wrong", "row"), [(5, 2), (-1, 0)])
def test_label_out_of_range(wrong: int, row: int, impl: str) -> None:
    student, teacher, targets = draw(3, 5)
    targets[row] = wrong
    expected = rf"targets \(3,\) has {wrong} in row {row}; expected \[0, 5\), or -100"
    with pytest.raises(ValueError, match=expected):
        dkd_loss(student, teacher, targets, impl=impl)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"target_weight": -1.0}, "target_weight is -1.0; expected a finite number of at least 0"),
        ({"non_target_weight": math.inf}, "non_target_weight is inf"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dkd_loss(*draw(2, 3), **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("student", "teacher", "targets", "message"),
    [
        ((0, 3), (0, 3), (0,), r"student is \(0, 3\); expected \(batch, classes\)"),
        ((4, 1), (4, 1), (4,), r"student is \(4, 1\)"),
        ((4,), (4,), (4,), r"student is \(4,\)"),
        ((4, 3), (4, 2), (4,), r"teacher is \(4, 2\); expected \(4, 3\) as student"),
    ],
)
@pytest.mark.usefixtures("no_shape_types")
def test_shapes_that_do_not_fit(
    student: tuple[int, ...], teacher: tuple[int, ...], targets: tuple[int, ...], message: str,
    name: str,
) -> None:  # fmt: skip
    labels = torch.zeros(targets, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        bound(name, labels)(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.usefixtures("no_shape_types")
def test_other_arguments_that_do_not_fit() -> None:
    student, teacher, targets = draw(4, 3)
    with pytest.raises(ValueError, match=r"targets is \(3,\) torch.int64; expected \(4,\)"):
        dkd_loss(student, teacher, targets[:3])
    with pytest.raises(ValueError, match=r"targets is \(4,\) torch.float32; .* integers"):
        dkd_loss(student, teacher, targets.float())
    with pytest.raises(ValueError, match="impl is 'fast'; expected one of auto, reference, eager"):
        reverse_kl(student, teacher, impl="fast")  # type: ignore[arg-type]
