"""The compiled path: same values, shapes it does not know, failures, torch.compile around it."""

import inspect
import logging
from typing import Any

import pytest
import torch
from rounding import as_close_as_plain, exact, plain
from torch import Tensor

from fskd.losses import kd_loss, kd_loss_and_grad, targets
from fskd.losses.fused import compiled, execute
from fskd.losses.fused import objective as fused

untyped = inspect.unwrap(kd_loss)


def solved(data: Any, impl: str = "compiled") -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    student = data.student.detach().requires_grad_()
    loss = kd_loss(student, data.teacher, data.targets, impl=impl, **data.options)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), grad


@pytest.fixture(scope="module", autouse=True)
def available() -> None:
    """A C++ compiler is needed."""
    student = torch.zeros(7, 5)
    kd_loss_and_grad(student, student, torch.zeros(7, dtype=torch.long), impl="compiled")
    if not any(compiled._variants.values()):
        pytest.skip("no working compiler")


NAMES = ["usual", "generated", "row_weights", "masked", "masked_ignored", "large",
         "apart", "apart_ignored", "far_apart",
         "none", "soft", "smoothing", "strided", "equal",
         "no_teacher_term", "unlabelled"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_values(cases: Any, twin: Any, in_proportion: Any, name: str) -> None:
    """Few shapes, since each variant takes seconds."""
    data = cases[name](torch.float32)
    in_proportion(data, solved(data), twin(data))


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
def test_rounding(data: Any, scale: float) -> None:
    """No more digits are lost than by the plain composition."""
    draws = [data(7, 5, 7, torch.float32, scale, seed) for seed in range(12)]
    as_close_as_plain(
        [solved(x) for x in draws], [plain(x) for x in draws], [exact(x) for x in draws]
    )


def test_half_precision(data: Any, twin: Any, in_proportion: Any) -> None:
    inputs = data(dtype=torch.float16)
    loss, grad = solved(inputs)
    assert (loss.dtype, grad.dtype) == (torch.float32, torch.float16)
    in_proportion(inputs, (loss, grad), twin(inputs))


def test_repeats_bit_for_bit(data: Any) -> None:
    inputs = data(dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(solved(inputs), solved(inputs), strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("real", [7, 4])
def test_ignored_labels_stay_here(
    data: Any, twin: Any, in_proportion: Any, monkeypatch: pytest.MonkeyPatch, real: int,
    reduction: str,
) -> None:  # fmt: skip
    """Compiled code counts the labels itself, so nothing is computed a second time."""
    monkeypatch.setattr(execute.kernels, "run", None)
    monkeypatch.setattr(execute, "check_labels", None)
    inputs = data(real=real, dtype=torch.float32, reduction=reduction)
    for some in ([0, 3], slice(None)):
        inputs.targets[some] = -100
        in_proportion(inputs, solved(inputs), twin(inputs))


@pytest.mark.parametrize("label", [5, -1, -7, 2**32 + 1])
def test_labels_out_of_range(data: Any, label: int) -> None:
    inputs = data(dtype=torch.float32)
    inputs.targets[2] = label
    with pytest.raises(ValueError, match=rf"targets \(7,\) has {label} in row 2"):
        solved(inputs)


def test_targets_need_not_be_contiguous(data: Any) -> None:
    inputs = data(dtype=torch.float32)
    twice = torch.stack((inputs.targets, inputs.targets + 0), 1)
    strided = inputs._replace(targets=twice[:, 0])
    torch.testing.assert_close(solved(strided), solved(inputs))


def test_unaligned_logits(data: Any) -> None:
    inputs = data(dtype=torch.float32)
    shifted = torch.cat((inputs.teacher.new_zeros(1), inputs.teacher.flatten()))[1:].view(7, 5)
    torch.testing.assert_close(solved(inputs._replace(teacher=shifted)), solved(inputs))


def test_variants_have_an_end(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature that changes at every step must not compile at every step."""
    made: list[float] = []
    compile_one = compiled._compile

    def counted(kind: compiled.Kind, arguments: tuple[Tensor, ...]) -> compiled.Variant | None:
        made.append(kind.temperature)
        return compile_one(kind, arguments)

    monkeypatch.setattr(compiled, "_variants", {})
    monkeypatch.setattr(compiled, "MAX_VARIANTS", 2)
    monkeypatch.setattr(compiled, "_compile", counted)
    execute.forget()
    for step in range(5):
        inputs = data(dtype=torch.float32, temperature=2.0 + step)
        torch.testing.assert_close(solved(inputs), solved(inputs, "eager"))
    assert made == [2.0, 3.0]


def test_first_call_with_one_tensor_twice() -> None:
    """A variant made when student and teacher are one tensor knows that they are two."""
    same, targets = torch.randn(6, 5), torch.arange(6) % 5
    for other in (same, torch.randn(6, 5)):
        fast = kd_loss_and_grad(same, other, targets, impl="compiled")
        torch.testing.assert_close(fast, kd_loss_and_grad(same, other, targets, impl="eager"))


def test_without_a_compiler(
    data: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, and the eager path goes on."""

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no g++\nmore")

    monkeypatch.setattr(compiled, "_variants", {})
    monkeypatch.setattr(compiled, "_hopeless", set())
    execute.forget()
    monkeypatch.setattr("torch._inductor.standalone_compile", broken)
    monkeypatch.setattr(logging.getLogger("fskd"), "propagate", True)
    inputs = data(dtype=torch.float32)
    for _ in range(2):
        torch.testing.assert_close(solved(inputs), solved(inputs, "eager"))
    lines = [record.getMessage() for record in caplog.records if record.name == "fskd"]
    assert lines == ["kd_loss is not compiled (no g++); the eager path goes on"]
    execute.forget()


def test_inside_torch_compile(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((fused, "_reference"), (fused, "kd_objective"), (targets, "kl_divergence"),
                         (targets, "at_least_float32")):  # fmt: skip
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    inputs = data(real=4, dtype=torch.float32)

    def step(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return 2.0 * untyped(student * 1.0, teacher, targets)

    student = inputs.student.requires_grad_()
    whole = torch.compile(step, fullgraph=True)(student, *inputs[1:3])
    (grad,) = torch.autograd.grad(whole, student)
    loss, expected = solved(inputs, "eager")
    torch.testing.assert_close((whole.detach(), grad), (2 * loss, 2 * expected))
