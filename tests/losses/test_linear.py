"""The objective with the last layer in it, against the layer and then the objective."""

import inspect
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fskd.losses import linear_kd_loss
from fskd.losses.targets import kd_objective

NAMES = ("hidden", "weight", "bias")


def layer(rows: int, width: int, classes: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Hidden rows, weight and bias."""
    rng = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (classes, width), (classes,))
    return [torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def plain(
    student: list[Tensor], known: Tensor, targets: Tensor | None, **settings: float
) -> Tensor:
    """The same with all logits at once."""
    return kd_objective(F.linear(*student), known, targets, **settings)


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, None])
@pytest.mark.parametrize("n_real", [None, 3, 7])
@pytest.mark.parametrize("whole_teacher", [True, False])
def test_plain(chunk_rows: int | None, n_real: int | None, whole_teacher: bool) -> None:
    """Value and all three gradients, whatever the chunks, with an upstream gradient of 3."""
    student, teacher = layer(7, 4, 5, torch.float64), layer(7, 6, 5, torch.float64, 1)
    targets = None if n_real is None else torch.arange(n_real) % 5
    if n_real == 7:
        targets[2] = -100
    known = F.linear(*teacher)
    for x in student:
        x.requires_grad_()
    expected = plain(student, known, targets, temperature=3.0)
    wanted = torch.autograd.grad(3 * expected, student)
    side = (
        {"teacher_logits": known}
        if whole_teacher
        else dict(zip(("teacher_hidden", "teacher_weight", "teacher_bias"), teacher, strict=True))
    )
    loss = linear_kd_loss(*student, **side, targets=targets, temperature=3.0, chunk_rows=chunk_rows)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(3 * loss, student)
    for name, a, b in zip(NAMES, found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=name)


def test_twice_and_partial_needs() -> None:
    """Asked for twice, gradients come twice; what needs none gets none; no bias is fine."""
    hidden, weight, _ = layer(5, 3, 4, torch.float64)
    weight.requires_grad_()
    known, targets = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    loss = linear_kd_loss(hidden, weight, teacher_logits=known, targets=targets, chunk_rows=2)
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    assert hidden.grad is None
    reference = linear_kd_loss(
        hidden, weight, teacher_logits=known, targets=targets, impl="reference"
    )
    torch.testing.assert_close(torch.autograd.grad(reference, weight)[0], once)


def test_gradcheck() -> None:
    """Numerical derivatives."""
    student = [x.requires_grad_() for x in layer(4, 3, 5, torch.float64)]
    known, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([4, 0, 1])

    def loss(*parts: Tensor) -> Tensor:
        return linear_kd_loss(*parts, teacher_logits=known, targets=targets, chunk_rows=2)

    assert torch.autograd.gradcheck(loss, student)


def test_bfloat16() -> None:
    """Weights' gradients add up in float32."""
    student, known = layer(64, 8, 11, torch.bfloat16), layer(64, 11, 2, torch.bfloat16, 3)[0]
    targets = torch.arange(64) % 11
    exact = [x.double().requires_grad_() for x in student]
    plain(exact, known.double(), targets).backward()
    for x in student:
        x.requires_grad_()
    linear_kd_loss(*student, teacher_logits=known, targets=targets, chunk_rows=4).backward()
    for x, twin in zip(student, exact, strict=True):
        assert (x.grad.double() - twin.grad).abs().max() < 0.02 * twin.grad.abs().max()


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are alive at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self._note(x)
        return out

    def _note(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.most = max(self.most, sum(self.alive.values()))


def test_memory() -> None:
    """The most that is alive at once is below a quarter of what the plain computation needs."""
    rows, width, classes = 128, 32, 20_000
    student = [x.requires_grad_() for x in layer(rows, width, classes, torch.float32)]
    teacher = layer(rows, width, classes, torch.float32, 1)
    targets = torch.arange(rows)
    peaks = []
    for fused in (False, True):
        for x in student:
            x.grad = None
        with Peak() as peak:
            if fused:
                side = dict(
                    zip(("teacher_hidden", "teacher_weight", "teacher_bias"), teacher, strict=True)
                )
                loss = linear_kd_loss(*student, **side, targets=targets, chunk_rows=8)
            else:
                loss = plain(student, F.linear(*teacher), targets)
            loss.backward()
        peaks.append(peak.most)
    assert peaks[1] < 0.25 * peaks[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_weight": torch.zeros(5, 9)}, r"student_weight is \(5, 9\); expected \(5, 4\)"),
        ({"student_bias": torch.zeros(4)}, r"student_bias is \(4,\); expected \(5,\)"),
        ({"teacher_logits": torch.zeros(7, 4)}, r"teacher_logits is \(7, 4\); expected \(7, 5\)"),
        ({"teacher_logits": None}, "give either teacher_logits, or teacher_hidden"),
        ({"targets": torch.zeros(8, dtype=torch.int64)}, r"targets is \(8,\); expected 1 to 7"),
        ({"targets": torch.tensor([5])}, r"targets \(1,\) has 5 in row 0; expected \[0, 5\)"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    """What does not fit is named."""
    hidden, weight, bias = layer(7, 4, 5, torch.float32)
    given = {
        "student_hidden": hidden,
        "student_weight": weight,
        "student_bias": bias,
        "teacher_logits": torch.zeros(7, 5),
        "targets": torch.tensor([1]),
    }
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(linear_kd_loss)(**(given | change))  # without the tests' shape checker


def test_transforms() -> None:
    hidden, weight, bias = layer(5, 4, 3, torch.float64)
    known, targets = layer(5, 3, 3, torch.float64, 1)[0], torch.tensor([0, 2, 1])

    def loss(impl: str) -> Any:
        settings = {"teacher_logits": known, "targets": targets, "impl": impl}
        return lambda rows: linear_kd_loss(rows, weight, bias, **settings)

    leaf = hidden.clone().requires_grad_()
    loss("auto")(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss("auto"))(hidden), leaf.grad)
    with pytest.raises(RuntimeError, match=r"linear_kd_loss\(impl='eager'\) cannot be transformed"):
        torch.func.grad(loss("eager"))(hidden)
