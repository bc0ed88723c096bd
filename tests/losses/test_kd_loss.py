"""kd_loss on every path against loops over rows and classes, and what autograd may ask of it."""

import inspect
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from fskd.losses import dkd_loss, kd_loss, kd_loss_and_grad, kd_terms, teacher_logsumexp
from fskd.losses.targets import kd_objective

# Without the types, which pytest checks before the function sees its arguments.
untyped = inspect.unwrap(kd_loss)


def solved(data: Any, impl: str, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss and gradient by autograd."""
    student = data.student.detach().requires_grad_()
    loss = kd_loss(student, data.teacher, data.targets, impl=impl, **data.options)
    (grad,) = torch.autograd.grad(
        loss, student, torch.ones_like(loss) if upstream is None else upstream
    )
    return loss.detach(), grad


def close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float) -> None:
    """Both, relative to the largest entry."""
    for a, b in zip(actual, expected, strict=True):
        bound = rtol * max(b[b.isfinite()].abs().max().item(), 1e-3)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


@pytest.mark.parametrize("impl", ["reference", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_case(
    case: Any, twin: Any, in_proportion: Any, impl: str, dtype: torch.dtype
) -> None:
    data = case(dtype)
    found = solved(data, impl)
    assert found[0].dtype == found[1].dtype == dtype
    if dtype == torch.float64:
        close(found, twin(data), 1e-11)
    else:
        in_proportion(data, found, twin(data))


def test_definition(case: Any, twin: Any) -> None:
    data = case(torch.float64)
    value = kd_objective(data.student, data.teacher, data.targets, **data.options)
    torch.testing.assert_close(value, twin(data)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "eager"])
def test_a_class_off_in_the_student_alone_costs_infinitely_much(data: Any, impl: str) -> None:
    inputs = data(dtype=torch.float32)
    inputs.student[2, inputs.targets[2] - 1] = -torch.inf
    assert kd_loss(inputs.student, inputs.teacher, inputs.targets, impl=impl).item() == torch.inf
    student = inputs.student.requires_grad_()
    assert kd_loss(student, inputs.teacher, inputs.targets, impl=impl).item() == torch.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "eager"])
def test_half_precision(
    data: Any, twin: Any, in_proportion: Any, dtype: torch.dtype, impl: str
) -> None:
    inputs = data(9, 30, 6, dtype, scale=4.0)
    loss, grad = solved(inputs, impl)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    in_proportion(inputs, (loss, grad), twin(inputs))


def test_half_precision_keeps_what_loss_scaling_saves(data: Any) -> None:
    inputs = data(64, 1000, 64, torch.float16, scale=8.0)
    upstream = torch.tensor(65536.0)
    _, grad = solved(inputs, "eager", upstream)
    _, expected = solved(inputs, "reference", upstream)
    assert ((grad == 0) <= (expected == 0)).all()


def test_known_teacher(data: Any) -> None:
    inputs = data(real=4)
    lse = teacher_logsumexp(inputs.teacher, 4.0)
    for reduction in ("mean", "none"):
        plain = inputs._replace(options={"reduction": reduction})
        known = inputs._replace(options={"reduction": reduction, "teacher_lse": lse})
        close(solved(known, "eager"), solved(plain, "eager"), 1e-12)
        close(solved(known, "reference"), solved(plain, "eager"), 1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"temperature": 3.0, "ce_weight": 0.0}],
    ids=str,
)
def test_gradcheck(data: Any, options: dict[str, Any]) -> None:
    inputs = data(4, 3, 2)

    def loss(student: Tensor) -> Tensor:
        return kd_loss(student, inputs.teacher, inputs.targets, impl="eager", **options)

    assert torch.autograd.gradcheck(loss, inputs.student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_upstream_gradient(
    data: Any, twin: Any, in_proportion: Any, dtype: torch.dtype, reduction: str
) -> None:
    inputs = data(real=4, dtype=dtype, reduction=reduction)
    upstream = torch.tensor(-2.5) if reduction == "mean" else torch.arange(7.0) - 3
    found, expected = solved(inputs, "eager", upstream.to(dtype)), twin(inputs, upstream.double())
    if dtype == torch.float64:
        close(found, expected, 1e-11)
    else:
        in_proportion(inputs, found, expected)


def test_large_gradients_are_scaled_too(data: Any) -> None:
    inputs = data(8, 1 << 15, 8, torch.float32)
    _, grad = solved(inputs, "eager")
    torch.testing.assert_close(solved(inputs, "eager", torch.tensor(3.0))[1], 3 * grad)


def test_accumulation(data: Any) -> None:
    inputs = data(real=4, dtype=torch.float32)
    _, once = solved(inputs, "eager")
    student = inputs.student.requires_grad_()
    loss = kd_loss(student, inputs.teacher, inputs.targets, impl="eager")
    loss.backward(retain_graph=True)
    kept = student.grad
    loss.backward(retain_graph=True)
    assert torch.equal(student.grad, 2 * once)
    assert student.grad is kept
    loss.backward()
    assert torch.equal(student.grad, 3 * once)
    student.grad = None
    losses = [kd_loss(student, inputs.teacher, inputs.targets, impl="eager") for _ in range(2)]
    (losses[0] + losses[1]).backward()
    assert torch.equal(student.grad, 2 * once)


def test_a_freed_graph_says_so(data: Any) -> None:
    inputs = data()
    loss = kd_loss(inputs.student.requires_grad_(), inputs.teacher, inputs.targets, impl="eager")
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_second_derivative(data: Any) -> None:
    inputs = data(3, 3, 3)
    student = inputs.student.requires_grad_()
    loss = kd_loss(student, inputs.teacher, inputs.targets, impl="eager")
    with pytest.raises(RuntimeError, match="impl='reference' is differentiable twice"):
        torch.autograd.grad(loss, student, create_graph=True)
    assert torch.autograd.gradgradcheck(
        lambda s: kd_loss(s, inputs.teacher, inputs.targets, impl="reference"), student
    )


@pytest.mark.parametrize("shape", [(7, 5), (32, 1000)])
def test_autocast_changes_nothing(data: Any, shape: tuple[int, int]) -> None:
    inputs = data(*shape, shape[0], torch.float32)
    expected = solved(inputs, "eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = solved(inputs, "eager")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_teacher_and_soft_targets_are_constant(data: Any, cases: Any) -> None:
    inputs = cases["soft"](torch.float64)
    teacher, targets = inputs.teacher.requires_grad_(), inputs.targets.requires_grad_()
    assert not kd_loss(inputs.student, teacher, targets, impl="eager").requires_grad
    kd_loss(inputs.student.requires_grad_(), teacher, targets, impl="eager").backward()
    assert teacher.grad is targets.grad is None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inference_mode_leaves_nothing_behind(data: Any, reduction: str) -> None:
    inputs = data(11, 3, 11, reduction=reduction)
    from fskd.losses.fused import chunks

    chunks._spare.clear()
    with torch.inference_mode():
        kd_loss(inputs.student, inputs.teacher, inputs.targets, impl="eager", reduction=reduction)
    assert solved(inputs, "eager")[1].isfinite().all()


@pytest.mark.parametrize("classes", [5, 1500])
@pytest.mark.parametrize("impl", ["eager", "reference"])
def test_teacher_in_inference_mode(data: Any, impl: str, classes: int) -> None:
    """Autograd keeps no such tensors; a second backward pass needs them all the same."""
    inputs = data(11, classes, 7, scale=1.0)
    student = inputs.student.requires_grad_()
    with torch.inference_mode():
        teacher = inputs.teacher.clone()
    loss = kd_loss(student, teacher, inputs.targets, impl=impl)
    terms = kd_terms(student, teacher, inputs.targets)
    for made, known in (
        (loss, kd_loss(student, inputs.teacher, inputs.targets)),
        (terms.kd, kd_terms(student, inputs.teacher, inputs.targets).kd),
        (dkd_loss(student, teacher, (torch.arange(11) % 5)), None),
    ):
        for _ in range(2):
            (grad,) = torch.autograd.grad(made, student, retain_graph=True)
            if known is not None:
                (slow,) = torch.autograd.grad(known, student, retain_graph=True)
                torch.testing.assert_close(grad, slow)


@pytest.mark.parametrize("classes", [5, 1500])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_change_in_place_is_no_silent_error(data: Any, which: int, classes: int) -> None:
    """The first gradient is made with the loss; a second one would be that of other logits."""
    inputs = data(11, classes, 7)
    leaf = inputs.student.requires_grad_()
    student = leaf * 1.0
    loss = kd_loss(student, inputs.teacher, inputs.targets, impl="eager")
    loss.backward(retain_graph=True)
    with torch.no_grad():
        (student, inputs.teacher, inputs.targets)[which][0] += 1
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
        loss.backward()


def test_transforms(data: Any) -> None:
    inputs = data(real=4)
    _, teacher, targets, _ = inputs

    def loss(student: Tensor, teacher: Tensor = teacher, impl: str = "auto") -> Tensor:
        return untyped(student, teacher, targets, impl=impl)

    torch.testing.assert_close(torch.func.grad(loss)(inputs.student), solved(inputs, "eager")[1])
    several = torch.stack([inputs.student, inputs.student + teacher])
    torch.testing.assert_close(torch.vmap(loss)(several), torch.stack([loss(s) for s in several]))
    over_teachers = torch.vmap(lambda t: loss(inputs.student, t))(several)
    torch.testing.assert_close(
        over_teachers, torch.stack([loss(inputs.student, t) for t in several])
    )
    for transform in (torch.func.grad, torch.vmap):
        with pytest.raises(RuntimeError, match="impl='auto' or 'reference' can"):
            transform(lambda s: loss(s, impl="eager"))(
                several if transform is torch.vmap else teacher
            )


def test_fake_tensors_leave_nothing_behind(data: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = data()
    with FakeTensorMode() as mode:
        student, teacher, targets = (mode.from_tensor(x) for x in inputs[:3])
        assert untyped(student, teacher, targets, impl="eager").shape == ()
    assert type(solved(inputs, "eager")[1]) is Tensor


def test_repeats_bit_for_bit(data: Any) -> None:
    for shape in ((7, 5), (300, 1000)):
        inputs = data(*shape, 5, torch.float32)
        first, second = solved(inputs, "eager"), solved(inputs, "eager")
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_threads(data: Any) -> None:
    single, double = torch.float32, torch.float64
    kinds = [(5, 7, single), (40, 900, single), (3, 11, double), (60, 300, double)]
    several = [data(rows, classes, rows - 1, dtype) for rows, classes, dtype in kinds]
    expected = [solved(inputs, "eager") for inputs in several]
    wrong = []

    def work(order: list[int]) -> None:
        for i in order * 20:
            found = solved(several[i], "eager")
            wrong.extend(
                i for a, b in zip(found, expected[i], strict=True) if not torch.equal(a, b)
            )

    threads = [threading.Thread(target=work, args=(o,)) for o in ([0, 1, 2, 3], [3, 1, 0, 2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_loss_inside_a_backward_hook(data: Any) -> None:
    outer, inner = data(6, 900, 4, torch.float32), data(50, 400, 50, torch.float32, seed=1)
    expected = solved(outer, "eager")[1], solved(inner, "eager")[1]
    seen: list[Tensor] = []
    student = outer.student.requires_grad_()
    passed = student * 1.0

    def nested(_: Tensor) -> None:
        with torch.enable_grad():
            seen.append(solved(inner, "eager")[1])

    passed.register_hook(nested)
    kd_loss(passed, outer.teacher, outer.targets, impl="eager").backward()
    assert torch.equal(student.grad, expected[0])
    assert torch.equal(seen[0], expected[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_handed_out(data: Any, dtype: torch.dtype) -> None:
    inputs = data(real=4, dtype=dtype)
    expected = solved(inputs, "eager")
    loss, grad = kd_loss_and_grad(*inputs[:3], impl="eager")
    torch.testing.assert_close((loss, grad), expected)
    out = torch.full_like(inputs.student, torch.nan)
    _, again = kd_loss_and_grad(*inputs[:3], impl="eager", out=out)
    assert again is out
    torch.testing.assert_close(out, grad)
    _, own = kd_loss_and_grad(*inputs[:3], impl="eager")
    assert own.data_ptr() != grad.data_ptr()
