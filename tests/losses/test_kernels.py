"""The eager kernels: odd chunks, lent buffers, memory, messages."""

import gc
import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rounding import ROUNDINGS, as_close_as_plain, differentiated, exact, plain
from torch.utils._python_dispatch import TorchDispatchMode

from fskd.losses import kd_loss, kd_loss_and_grad
from fskd.losses.fused import chunks, execute, kernels
from fskd.losses.fused.small import Small

untyped = inspect.unwrap(kd_loss)
untyped_grad = inspect.unwrap(kd_loss_and_grad)


@pytest.mark.parametrize("chunk", [1, 5, 11, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_partial_chunks(
    case: Any,
    twin: Any,
    in_proportion: Any,
    chunk: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = case(dtype)
    if dtype == torch.bfloat16 and chunk != 11:
        pytest.skip("one chunk length is enough for a second precision")
    monkeypatch.setitem(chunks.CHUNK, "cpu", chunk)
    student = data.student.detach().requires_grad_()
    loss = kd_loss(student, data.teacher, data.targets, impl="eager", **data.options)
    loss.sum().backward()
    expected, grad = twin(data)
    found = loss.detach(), student.grad
    if dtype == torch.float64:
        for ours, theirs in zip(found, (expected, grad), strict=True):
            bound = 1e-11 * max(theirs.abs().max().item(), 1e-3)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)
    else:
        in_proportion(data, found, (expected, grad))


def test_chunks_cover_every_length(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = data(9, 4, 9)
    whole = kd_loss(*inputs[:3], impl="eager", reduction="none")
    for rows in range(1, 10):
        monkeypatch.setitem(chunks.CHUNK, "cpu", 4 * rows)
        part = kd_loss(*inputs[:3], impl="eager", reduction="none")
        torch.testing.assert_close(part, whole)


def test_small_and_large_paths_meet(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = data(30, 20, 21, torch.float32)
    small = kd_loss_and_grad(*inputs[:3], impl="eager")
    execute._planned.cache_clear()
    monkeypatch.setattr(execute, "MOST_LOGITS", 0)
    large = kd_loss_and_grad(*inputs[:3], impl="eager")
    execute._planned.cache_clear()
    for path in (small, large):
        as_close_as_plain([path], [plain(inputs)], [exact(inputs)], 2 * ROUNDINGS)


@pytest.fixture(params=[False, True])
def flush(request: pytest.FixtureRequest) -> Iterator[None]:
    """Denormal numbers as they are, then as 0."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flush")
@pytest.mark.parametrize("level", [-60, -70, -86, -88, -90, -92, -96, -100, -103, -104, -110])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_rows_far_below_zero(data: Any, level: float, temperature: float) -> None:
    """Whose exponentials have fewer digits than others, or none.

    Where nothing is taken off, T^2 KL is made of parts as large as T times what is between the two
    networks' logits, each of which is rounded.
    """
    inputs = data(1, 2, 1, torch.float32, temperature=temperature)
    inputs.student.copy_(torch.tensor([[level, level - 1.0]]))
    inputs.teacher.copy_(torch.tensor([[1.0, 2.0]]))
    expected = exact(inputs)
    parts = temperature * (2.0 - level) / expected[0].item()
    close(inputs, ROUNDINGS * (1 + parts))


@pytest.mark.usefixtures("flush")
@pytest.mark.parametrize("gap", [60.0, 68.0, 70.0, 76.0, 80.0, 84.0, 87.0, 88.0, 89.0, 120.0])
def test_labels_far_below_another_class(data: Any, gap: float) -> None:
    """Whose sums are so large that their inverses have fewer digits than others, or none."""
    inputs = data(2, 50_001, 2, torch.float32)
    inputs.student.zero_()[:, 7] = gap
    inputs.teacher.copy_(inputs.student / 8)
    inputs.targets.copy_(torch.tensor([3, 7]))
    close(inputs)


def close(inputs: Any, roundings: float = ROUNDINGS) -> None:
    """Loss and gradient are at most twice as far off as the plain composition's."""

    def loss(student: torch.Tensor) -> torch.Tensor:
        return kd_loss(student, inputs.teacher, inputs.targets, impl="eager", **inputs.options)

    found = differentiated(loss, inputs.student)
    as_close_as_plain([found], [plain(inputs)], [exact(inputs)], roundings)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 100), 40), ((256, 1000), 130), ((128, 21841), 6), ((300, 4096), 32), ((9, 200_000), 1)],
)
def test_rows_of_a_chunk(shape: tuple[int, int], expected: int) -> None:
    """As many as fit, and whole cache lines where that is possible."""
    assert chunks.chunk_rows(torch.empty(shape)) == expected


def test_lent_buffers_differ() -> None:
    like = torch.zeros(4, 6)
    with chunks.scratch(2, 3, like) as outer, chunks.scratch(2, 3, like) as inner:
        places = {buffer.data_ptr() for buffer in (*outer, *inner)}
        assert len(places) == 4
        assert all(buffer.shape == (3, 6) for buffer in (*outer, *inner))
        assert all(place % 64 == 0 for place in places), "torch's calls are slower across lines"
    with pytest.raises(KeyError), chunks.scratch(1, 1, like):
        raise KeyError
    with chunks.scratch(1, 1, like.bfloat16()) as (buffer,):
        assert buffer.dtype == torch.float32


def test_constants_stay(cases: Any) -> None:
    small = Small(7, 4, 5, 4.0, 0.1, 0.2, 0.3)
    before = {name: x.clone() for name, x in vars(small).items() if isinstance(x, torch.Tensor)}
    small(torch.randn(7, 5), torch.randn(7, 5), torch.tensor([0, 1, 2, 3]))
    assert before
    assert all(torch.equal(getattr(small, name), x) for name, x in before.items())
    column = chunks.constant_column(7, 0.25, torch.float64, torch.device("cpu"))
    number = kernels._constant(0.25, torch.float64)
    for make in cases.values():
        data = make(torch.float64)
        kd_loss_and_grad_or_loss(data)
    assert torch.equal(column, torch.full((7, 1), 0.25, dtype=torch.float64))
    assert number.item() == 0.25
    for value in (0.1, 0.9 * 4 / 7):
        column = chunks.constant_column(7, value, torch.float64, torch.device("cpu"))
        assert torch.equal(column, torch.full((7, 1), value, dtype=torch.float64))


def test_defaults_of_torch_change_nothing() -> None:
    logits, labels = torch.randn(2, 7, 5), torch.tensor([0, 1, 2, 3])
    expected = kd_loss_and_grad(*logits, labels, impl="eager")
    execute.forget()
    torch.set_default_dtype(torch.float64)
    try:
        found = kd_loss_and_grad(*logits, labels, impl="eager")
    finally:
        torch.set_default_dtype(torch.float32)
        execute.forget()
    assert [x.dtype for x in found] == [torch.float32] * 2
    assert all(map(torch.equal, found, expected))


def kd_loss_and_grad_or_loss(data: Any) -> None:
    """Forward and backward."""
    student = data.student.detach().requires_grad_()
    kd_loss(student, data.teacher, data.targets, impl="eager", **data.options).sum().backward()


class Made(TorchDispatchMode):
    """Counts the bytes of memory that operations return and did not get."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            x.untyped_storage().data_ptr()
            for x in (*args, *(kwargs or {}).values())
            if isinstance(x, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.total += x.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize(("rows", "classes"), [(512, 1000), (256, 2000)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"temperature": 3.0}], ids=str)
def test_memory(data: Any, rows: int, classes: int, options: dict[str, Any]) -> None:
    inputs = data(rows, classes, rows // 2, torch.float32)
    out = torch.empty_like(inputs.student)
    kd_loss_and_grad(*inputs[:3], impl="eager", out=out, **options)
    gc.collect()
    with Made() as made:
        kd_loss_and_grad(*inputs[:3], impl="eager", out=out, **options)
    assert 0 < made.total <= 0.1 * out.nbytes


LOGITS = torch.zeros(3, 4)
LABELS = torch.tensor([0, 1, 2])
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "one_axis": ((LOGITS[0], LOGITS[0], LABELS), {}, r"student_logits is \(4,\); expected \(rows"),
    "no_rows": ((LOGITS[:0], LOGITS[:0], None), {}, r"student_logits is \(0, 4\); expected"),
    "one_class": ((LOGITS[:, :1], LOGITS[:, :1], None), {}, r"\(3, 1\); expected .*\(1, 2\)"),
    "teacher": ((LOGITS, LOGITS[:2], LABELS), {}, r"teacher_logits is \(2, 4\); expected \(3, 4\)"),
    "integers": ((LOGITS.long(), LOGITS, LABELS), {}, "student_logits is torch.int64; expected a"),
    "teacher_int": ((LOGITS, LOGITS.int(), LABELS), {}, "teacher_logits is torch.int32; expected"),
    "long": ((LOGITS, LOGITS, LABELS.repeat(2)), {}, r"targets is \(6,\); expected 1 to 3 rows"),
    "empty": ((LOGITS, LOGITS, LABELS[:0]), {}, r"targets is \(0,\); expected 1 to 3 rows"),
    "column": ((LOGITS, LOGITS, LABELS[:, None]), {}, r"targets is \(3, 1\); expected \(real,\)"),
    "width": ((LOGITS, LOGITS, LOGITS[:, :3]), {}, r"targets is \(3, 3\); expected \(real, 4\)"),
    "flat_soft": ((LOGITS, LOGITS, LOGITS[:, 0]), {}, r"targets is \(3,\); expected \(real, 4\)"),
    "row_weights": ((LOGITS, LOGITS), {"row_weights": LOGITS[0]}, r"row_weights is \(4,\); .*3"),
    "lse": ((LOGITS, LOGITS), {"teacher_lse": LOGITS}, r"teacher_lse is \(3, 4\); expected \(3,\)"),
    "zero_T": ((LOGITS, LOGITS), {"temperature": 0.0}, "temperature is 0.0; expected .* above 0"),
    "minus_T": ((LOGITS, LOGITS), {"temperature": -4.0}, "temperature is -4.0; expected"),
    "nan_T": ((LOGITS, LOGITS), {"temperature": math.nan}, "temperature is nan; expected"),
    "inf_T": ((LOGITS, LOGITS), {"temperature": math.inf}, "temperature is inf; expected"),
    **{
        name: ((LOGITS, LOGITS), {name: -0.1}, f"{name} is -0.1; expected .* at least 0")
        for name in ("ce_weight", "kd_weight", "generated_weight")
    },
    "nan_weight": ((LOGITS, LOGITS), {"ce_weight": math.nan}, "ce_weight is nan; expected"),
    "smoothing": ((LOGITS, LOGITS), {"label_smoothing": 1.0}, r"label_smoothing is 1.0; .*\[0, 1"),
    "reduction": ((LOGITS, LOGITS), {"reduction": "avg"}, "'avg'; expected one of mean, sum, none"),
    "impl": ((LOGITS, LOGITS), {"impl": "fast"}, "impl is 'fast'; expected one of auto, ref.*"),
}


@pytest.mark.parametrize("name", BAD)
def test_messages(name: str) -> None:
    arguments, options, message = BAD[name]
    for function in (untyped, untyped_grad):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)


@pytest.mark.parametrize("label", [4, -1, -7])
@pytest.mark.parametrize("rows", [3, 50_000], ids=["small", "large"])
@pytest.mark.parametrize("grad", [True, False])
def test_labels_out_of_range(label: int, rows: int, grad: bool) -> None:
    logits = torch.zeros(rows, 4, requires_grad=grad)
    targets = torch.zeros(rows, dtype=torch.long)
    targets[1], targets[0] = label, -100
    expected = rf"targets \({rows},\) has {label} in row 1; expected \[0, 4\), or -100"
    for impl in ("eager", "auto"):
        with pytest.raises(ValueError, match=expected):
            kd_loss(logits, logits.detach(), targets, impl=impl)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        kd_loss(logits, logits.detach(), targets, impl="reference")


@pytest.mark.parametrize(("name", "place"), [("student_logits", 0), ("teacher_logits", 1)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_debug(name: str, place: int, value: float) -> None:
    tensors = [LOGITS.clone(), LOGITS.clone()]
    tensors[place][1, 2] = value
    with pytest.raises(ValueError, match=rf"{name} \(3, 4\) has NaN or \+inf in rows \[1\]"):
        kd_loss(*tensors, LABELS, debug=True)
    with (
        pytest.warns(UserWarning, match="Anomaly"),
        torch.autograd.detect_anomaly(),
        pytest.raises(ValueError, match=name),
    ):
        kd_loss(*tensors, LABELS)
    assert not kd_loss(*tensors, LABELS).isfinite()
    with pytest.raises(ValueError, match=r"targets \(3,\) has 9 in row 0"):
        kd_loss(LOGITS, LOGITS, LABELS + 9, debug=True)
    tensors[place][1, 2] = -math.inf
    assert not kd_loss(*tensors, LABELS, debug=True).isnan()


@pytest.mark.parametrize(
    "out", [torch.zeros(3, 5), torch.zeros(3, 4).double(), torch.zeros(4, 3).T], ids=str
)
def test_place_of_the_gradient_must_fit(out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"out is .*; expected contiguous \(3, 4\) torch.float32"):
        untyped_grad(LOGITS, LOGITS, LABELS, out=out)


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"impl": "reference"}], ids=str)
def test_gradient_is_of_a_sum(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use kd_loss"):
        kd_loss_and_grad(LOGITS, LOGITS, LABELS, **options)
