"""kd_terms against the definitions, and trainings with either."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fskd.losses import cross_entropy, kd_terms, kl_divergence
from fskd.losses.fused import chunks, execute, terms
from fskd.losses.fused.measuring import peak
from fskd.losses.fused.terms import Terms, _constants

EPS = torch.finfo(torch.float32).eps
# A logit of 8, which few of the draws reach, puts 8 eps on an exponent, both networks' and T^2/T on
# a term 64; of two results in float32, each may be so far off.
NEAR = 64 * EPS
WEIGHTS = [(0.1, 0.9, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, -3.0)]


def plain(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0) -> Terms:
    """The definitions, one after another."""
    n, zero = len(targets), student.sum().float() * 0.0
    return Terms(
        cross_entropy(student[:n], targets) if n else zero,
        kl_divergence(student[:n], teacher[:n], temperature) if n else zero,
        kl_divergence(student[n:], teacher[n:], temperature) if n < len(student) else zero,
    )


def weighted(terms: Terms, weights: tuple[float, ...]) -> Tensor:
    """Their sum with weights."""
    return torch.stack([w * t for w, t in zip(weights, terms, strict=True)]).sum()


@pytest.mark.parametrize(("rows", "real"), [(7, 7), (7, 4), (7, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 3.0])
def test_definitions(
    data: Any, rows: int, real: int, dtype: torch.dtype, temperature: float
) -> None:
    inputs = data(rows, 5, real, dtype)
    student, exact = inputs.student.requires_grad_(), inputs.student.detach().double()
    exact.requires_grad_()
    found = kd_terms(student, *inputs[1:3], temperature)
    expected = plain(exact, inputs.teacher.double(), inputs.targets, temperature)
    loose = 1e-11 if dtype == torch.float64 else NEAR
    assert found.ce.dtype == torch.promote_types(dtype, torch.float32)
    for term, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(term.double(), slow.double(), rtol=loose, atol=loose)
    for weights in WEIGHTS:
        (grad,) = torch.autograd.grad(weighted(found, weights), student, retain_graph=True)
        (slow,) = torch.autograd.grad(weighted(expected, weights), exact, retain_graph=True)
        bound = max(loose, 2**-8 if dtype == torch.bfloat16 else 0) * slow.abs().max().item()
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), slow, rtol=0, atol=bound + 1e-12)


@pytest.fixture
def by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of many logits for few, three rows at a time."""
    monkeypatch.setattr(terms, "MOST_KEPT", (0, 0))
    monkeypatch.setitem(chunks.CHUNK, "cpu", 15)


@pytest.fixture(params=["kept", "by_chunks"])
def both_ways(request: pytest.FixtureRequest) -> None:
    """Each path in turn."""
    if request.param == "by_chunks":
        request.getfixturevalue("by_chunks")


@pytest.mark.usefixtures("by_chunks")
@pytest.mark.parametrize("code", ["eager", "compiled"])
@pytest.mark.parametrize("real", [7, 4, 0])
@pytest.mark.parametrize("expected", [None, WEIGHTS[0], WEIGHTS[1], WEIGHTS[2]])
def test_by_chunks(
    data: Any, monkeypatch: pytest.MonkeyPatch, code: str, real: int, expected: Any
) -> None:
    """Values and gradients, whatever weights were expected, also when asked for twice."""
    monkeypatch.setattr(execute, "fastest", lambda *_: code)
    inputs = data(7, 5, real, torch.float32)
    student, teacher = inputs.student.requires_grad_(), inputs.teacher
    slow = plain(student, teacher, inputs.targets)
    for weights in (*WEIGHTS, tuple(3.0 * w for w in WEIGHTS[0])):
        found = kd_terms(student, teacher, inputs.targets, weights=expected)
        torch.testing.assert_close(tuple(found), tuple(slow), rtol=2 * NEAR, atol=2 * NEAR)
        (known,) = torch.autograd.grad(weighted(slow, weights), student, retain_graph=True)
        for _ in range(2):
            loss = weighted(found, weights)
            (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
            torch.testing.assert_close(grad, known, rtol=2 * NEAR, atol=2 * NEAR)


@pytest.mark.usefixtures("by_chunks")
@pytest.mark.parametrize("code", ["eager", "compiled"])
@pytest.mark.parametrize("expected", [None, WEIGHTS[0]])
@pytest.mark.parametrize("name", ["apart", "far_apart", "large"])
def test_logits_far_apart(
    cases: Any, monkeypatch: pytest.MonkeyPatch, code: str, expected: Any, name: str
) -> None:
    monkeypatch.setattr(execute, "fastest", lambda *_: code)
    inputs = cases[name](torch.float32)
    student = inputs.student.requires_grad_()
    found = kd_terms(student, *inputs[1:3], weights=expected)
    slow = plain(student, *inputs[1:3])
    torch.testing.assert_close(tuple(found), tuple(slow), rtol=2 * NEAR, atol=2 * NEAR)
    for weights in WEIGHTS[:2]:
        (grad,) = torch.autograd.grad(weighted(found, weights), student, retain_graph=True)
        (known,) = torch.autograd.grad(weighted(slow, weights), student, retain_graph=True)
        torch.testing.assert_close(grad, known, rtol=2 * NEAR, atol=2 * NEAR)


@pytest.mark.usefixtures("by_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_by_chunks_in_other_precisions(data: Any, dtype: torch.dtype) -> None:
    inputs = data(7, 5, 4, dtype)
    student, exact = inputs.student.requires_grad_(), inputs.student.detach().double()
    loss = weighted(kd_terms(student, *inputs[1:3], weights=WEIGHTS[0]), WEIGHTS[0])
    (grad,) = torch.autograd.grad(1000.0 * loss, student)
    exact.requires_grad_()
    slow = 1000.0 * weighted(plain(exact, inputs.teacher.double(), inputs.targets), WEIGHTS[0])
    (known,) = torch.autograd.grad(slow, exact)
    assert grad.dtype == dtype
    bound = {torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(grad.double(), known, rtol=0, atol=bound * known.abs().max().item())


@pytest.mark.usefixtures("by_chunks")
@pytest.mark.parametrize("weights", [(0.1, 0.9, 1.0), (0.0, 0.9, 1.0), (0.3, 0.0, 0.0)])
@pytest.mark.parametrize("real", [7, 4, 0])
def test_expected_weights_save_the_second_pass(
    data: Any, monkeypatch: pytest.MonkeyPatch, real: int, weights: tuple[float, float, float]
) -> None:
    inputs = data(7, 5, real, torch.float32)
    student = inputs.student.requires_grad_()
    found = kd_terms(student, *inputs[1:3], weights=weights)
    loss = weighted(found, weights) / 1.9
    (expected,) = torch.autograd.grad(
        weighted(plain(student, *inputs[1:3]), weights) / 1.9, student
    )
    monkeypatch.setattr(execute, "run", None)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, expected, rtol=2 * NEAR, atol=2 * NEAR)


def test_many_logits_need_no_memory_but_the_gradient(data: Any) -> None:
    inputs = data(90, 1000, 50, torch.float32)
    student = inputs.student.requires_grad_()

    def step() -> None:
        student.grad = None
        weighted(kd_terms(student, *inputs[1:3], weights=WEIGHTS[0]), WEIGHTS[0]).backward()

    step()
    assert peak(step, torch.device("cpu")) <= 1.1 * 4 * student.numel()


@pytest.mark.usefixtures("both_ways")
def test_gradcheck_and_single_terms(data: Any) -> None:
    inputs = data(5, 3, 3)
    student = inputs.student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: tuple(kd_terms(s, *inputs[1:3])), student)
    for i in range(3):
        (grad,) = torch.autograd.grad(kd_terms(student, *inputs[1:3])[i], student)
        (slow,) = torch.autograd.grad(plain(student, *inputs[1:3])[i], student)
        torch.testing.assert_close(grad, slow)


def test_constants_stay(data: Any) -> None:
    arguments = (7, 4, 4.0, torch.float64, torch.device("cpu"))
    before = [x.clone() for x in _constants(*arguments)]
    inputs = data(real=4)
    loss = weighted(kd_terms(inputs.student.requires_grad_(), *inputs[1:3]), WEIGHTS[0])
    loss.backward(retain_graph=True)
    once = inputs.student.grad.clone()
    loss.backward()
    assert torch.equal(inputs.student.grad, 2 * once)
    assert all(torch.equal(a, b) for a, b in zip(before, _constants(*arguments), strict=True))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("label", [5, -1, -100])
def test_labels_are_classes(data: Any, label: int) -> None:
    inputs = data()
    inputs.targets[3] = label
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        kd_terms(*inputs[:3])


def test_second_derivative_and_transforms(data: Any) -> None:
    inputs = data(4, 3, 2)
    student = inputs.student.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(kd_terms(student, *inputs[1:3]).kd, student, create_graph=True)
    grad = torch.func.grad(lambda s: weighted(kd_terms(s, *inputs[1:3]), WEIGHTS[0]))
    (expected,) = torch.autograd.grad(
        weighted(plain(student, *inputs[1:3]), WEIGHTS[0]), student
    )  # fmt: skip
    torch.testing.assert_close(grad(student.detach()), expected)


def curve(terms: Any) -> list[float]:
    """Losses of 20 steps on a small net, half of the rows generated.

    In float64, since a training multiplies what is lost to rounding by a factor nobody knows.
    """
    torch.manual_seed(0)
    net, teacher = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)).double() for _ in range(2)
    )
    teacher.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(20):
        x, y = torch.randn(24, 8, dtype=torch.float64), torch.randint(6, (12,))
        loss = weighted(terms(net(x), 5 * teacher(x), y), WEIGHTS[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("both_ways")
def test_training_is_the_same() -> None:
    found, expected = curve(kd_terms), curve(plain)
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(found)) == 20


def test_kdplus_without_rows_is_kd(data: Any) -> None:
    """Through the methods: the generated term is left out, the others are the same."""
    from steps import joint, speak, values

    from fskd.types import Batch, Outputs, Shapes, TapShapes

    inputs = data(6, 5, 6)
    taps = TapShapes((5,), (4,), (), ())
    shapes = Shapes(5, 6, taps, taps, inputs.targets)
    batch = Batch(torch.zeros(6, 1, 2, 2), inputs.targets, torch.arange(6))
    nets = {"student": Outputs(inputs.student), "teacher": Outputs(inputs.teacher)}
    kd, plus = (values(speak(joint(name, shapes), nets, batch)) for name in ("kd", "kdplus"))
    assert set(kd) == set(plus) == {"ce", "kd"}
    assert all(torch.equal(kd[name], plus[name]) for name in kd)
    torch.testing.assert_close(kd["kd"], kl_divergence(inputs.student, inputs.teacher, 4.0))
