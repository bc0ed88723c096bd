"""OFD: recorded values, margins against integrals and loops, and what is saved."""

import math
from collections.abc import Iterator

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, step, taps
from torch import Tensor, nn

from fskd.losses.margins import gaussian_margin, measured_margins, norm_margin
from fskd.methods.ofd import OFD, overhaul_loss, partial_distance
from fskd.methods.words import Terms
from fskd.types import Batch, Outputs, Progress, Tools


def ours(name: str) -> str:
    """``connector0.1.bias`` is ``connectors.0.1.bias``."""
    return f"connectors.{name.removeprefix('connector')}"


def norm(weight: Tensor, bias: Tensor) -> nn.BatchNorm2d:
    """A batch norm with these parameters."""
    found = nn.BatchNorm2d(len(weight)).to(weight.dtype)
    found.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return found


def built(student: list[Tensor], teacher: list[Tensor], norms: tuple[object, ...] = ()) -> OFD:
    """The method for networks that give these maps."""
    method = OFD(OFD.Settings())
    method.shapes = shapes(taps(student), taps(teacher, norms=norms))
    method.build(method.shapes)
    return method


def tools(*batches: list[Tensor]) -> Tools:
    """The teacher gives these maps for the batches of one pass."""

    def ask(name: str, inputs: Tensor, read: frozenset[str]) -> Outputs:
        assert (name, read) == ("teacher", {"pre"})
        return Outputs(pre=tuple(batches[int(inputs.flatten()[0])]))

    def one_pass() -> Iterator[Batch]:
        for i, one in enumerate(batches):
            batch = real_batch(torch.zeros(len(one[0]), dtype=torch.long))
            yield batch._replace(inputs=torch.full_like(batch.inputs, i))

    return Tools(Progress(), ask, one_pass, torch.Generator())


def terms_of(method: OFD, student: list[Tensor], teacher: list[Tensor]) -> Terms:
    """The term."""
    batch = real_batch(torch.zeros(len(student[0]), dtype=torch.long))
    outputs = {"student": student, "teacher": teacher}
    given = {name: Outputs(pre=tuple(one)) for name, one in outputs.items()}
    return method.terms(step(batch, **given))


def test_recorded() -> None:
    """Margins, loss without the factor 1e-3, its parts, and gradients of maps and connectors."""
    case = Case("ofd_c1")
    student, teacher = case.stages("pre_s"), case.stages("pre_t")
    pairs = zip(case.stages("bn_weight"), case.stages("bn_bias"), strict=True)
    method = built(student, teacher, tuple(norm(*pair) for pair in pairs)).double()
    missing = method.load_state_dict(case.weights(ours), strict=False)
    assert missing.unexpected_keys == []
    method.begin(tools())
    for i, margin in enumerate(method.margins):
        case.close(margin, f"margin_{i}")
    term = terms_of(method, student, teacher)["ofd"]
    assert term.weight == 1
    case.loss(1000 * term.value, dict(method.named_parameters()), ours)
    guesses = [c(s) for c, s in zip(method.connectors, student, strict=True)]
    stages = zip(guesses, teacher, method.margins, strict=True)
    parts = [partial_distance(*one) / 2 ** (2 - i) for i, one in enumerate(stages)]
    case.close(torch.stack(parts), "parts")


def test_slow_twin() -> None:
    """Number by number, unequal stages' weights included."""
    student = [maps(3, 2, 3, 5), maps(3, 4, 2, 2, seed=1), maps(3, 1, 1, 2, seed=2)]
    teacher = [maps(*s.shape, seed=3 + i) for i, s in enumerate(student)]
    margins = [-maps(s.shape[1], seed=9).abs() for s in student]
    total = 0.0
    for stage, (s, t, m) in enumerate(zip(student, teacher, margins, strict=True)):
        for b, c, h, w in torch.cartesian_prod(*(torch.arange(n) for n in s.shape)).tolist():
            guess, goal = s[b, c, h, w].item(), max(t[b, c, h, w].item(), m[c].item())
            if guess > goal or goal > 0:
                total += (guess - goal) ** 2 / 2 ** (2 - stage)
    actual = overhaul_loss(student, teacher, margins)
    assert actual.item() == pytest.approx(1e-3 * total / 3, rel=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.4), (1.1, -0.6), (2.0, 0.7)])
def test_margin_is_the_mean_of_negative_values(mean: float, std: float) -> None:
    """Against an integral over the negative half-line."""
    x = torch.linspace(-12 * abs(std) - abs(mean), 0, 400_001, dtype=torch.float64)
    density = (-(((x - mean) / std) ** 2) / 2).exp()
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    actual = gaussian_margin(torch.tensor([mean]), torch.tensor([std]))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)


def test_margin_limits() -> None:
    """Three deviations where negative values are rare; a constant channel is its own margin."""
    mean = torch.tensor([4.0, 1e30, -2.0, 0.0, 3.0, -1e30])
    std = torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0, 1e-30])
    expected = torch.tensor([-3.0, -3.0, -2.0, 0.0, 0.0, -1e30], dtype=torch.float64)
    torch.testing.assert_close(gaussian_margin(mean, std), expected, rtol=1e-6, atol=1e-20)


def test_measured_margins() -> None:
    """Loops over channels; 0 for a channel that is never negative; batches may differ in size."""
    batches = [[maps(n, 3, 2, 5, seed=n), maps(n, 1, 1, 1, seed=n + 5)] for n in (4, 1, 3)]
    for one in batches:
        one[0][:, 1].abs_()
    found = measured_margins(iter(batches))
    for stage, margins in enumerate(found):
        rows = torch.cat([one[stage] for one in batches])
        for c, margin in enumerate(margins.tolist()):
            low = [v for v in rows[:, c].flatten().tolist() if v < 0]
            assert margin == pytest.approx(sum(low) / len(low) if low else 0.0, rel=1e-12)
    assert found[0][1] == 0


@pytest.mark.parametrize("known", [(), (None, None), (None, "norm"), ("plain", "norm")])
def test_margins_are_read_when_training_begins(known: tuple[object, ...]) -> None:
    """From batch norms as they are then, otherwise measured; saved and restored."""
    student, teacher = [maps(2, 2, 4, 4), maps(2, 2, 2, 2)], [maps(2, 3, 4, 4), maps(2, 5, 2, 2)]
    late = nn.BatchNorm2d(5)
    modules = {"norm": late, "plain": nn.BatchNorm2d(3, affine=False), None: None}
    method = built(student, teacher, tuple(modules[one] for one in known))
    assert not any(margin.any() for margin in method.margins)
    with torch.no_grad():
        late.weight.fill_(2.0)
        late.bias.fill_(-0.5)
    method.begin(tools(teacher, [-one for one in teacher]))
    expected = measured_margins([teacher, [-one for one in teacher]])
    if "norm" in known:
        expected[1] = norm_margin(late)
        assert expected[1][0] == pytest.approx(-1.79168, rel=1e-5)
    for margin, one in zip(method.margins, expected, strict=True):
        torch.testing.assert_close(margin, one.float())
        assert not margin.requires_grad
    again = built(student, teacher)
    again.load_state_dict(method.state_dict())
    for margin, one in zip(again.margins, method.margins, strict=True):
        torch.testing.assert_close(margin, one, rtol=0, atol=0)


def test_batch_norms_alone_ask_nothing() -> None:
    """With every batch norm known the teacher is not asked."""
    method = built([maps(2, 2, 4, 4)], [maps(2, 3, 4, 4)], (nn.BatchNorm2d(3),))
    method.begin(tools())
    expected = torch.full((3,), -math.sqrt(2 / math.pi))
    torch.testing.assert_close(method.margins[0], expected)


@pytest.mark.parametrize("sizes", [((6, 4), (3, 2)), ((3, 2), (6, 4)), ((5, 5), (5, 5))])
def test_unlike_widths_and_sizes(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """The larger map is pooled; connectors get a gradient, also for one row; the teacher none."""
    student, teacher = [maps(1, 3, *sizes[0])], [maps(1, 7, *sizes[1], seed=1).requires_grad_(True)]
    method = built(student, teacher).double()
    method.begin(tools([one.detach() for one in teacher]))
    loss = terms_of(method, student, teacher)["ofd"].value
    loss.backward()
    assert loss > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert teacher[0].grad is None


def test_a_single_value_per_channel_is_left_out() -> None:
    """Batch normalisation needs two."""
    student, teacher = [maps(1, 3, 2, 2), maps(1, 3, 2, 2)], [maps(1, 3, 2, 2), maps(1, 4, 1, 1)]
    assert terms_of(built(student, teacher).double(), student, teacher) == {}
    two = [torch.cat([one, one]) for one in student], [torch.cat([one, one]) for one in teacher]
    assert terms_of(built(*two).double(), *two).keys() == {"ofd"}


def test_silent_channels() -> None:
    """A student below the margin is right where the teacher is silent, wrong where it speaks."""
    margin, student = torch.tensor([-1.0]), torch.full((1, 1, 1, 1), -2.0)
    assert partial_distance(student, torch.full((1, 1, 1, 1), -5.0), margin) == 0
    assert partial_distance(student, torch.full((1, 1, 1, 1), 1.0), margin) == 9
    assert partial_distance(student + 2, torch.full((1, 1, 1, 1), -5.0), margin) == 1


def test_bf16_and_extremes() -> None:
    """Rounded maps are computed with in float32; large ones stay finite."""
    student, teacher = maps(3, 2, 4, 4), maps(3, 2, 4, 4, seed=1)
    margin = torch.tensor([-0.5, -0.1])
    exact = partial_distance(student.float(), teacher.float(), margin)
    rounded = partial_distance(student.bfloat16(), teacher.bfloat16(), margin)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    method = built([student], [teacher])
    with torch.autocast("cpu", torch.bfloat16):
        assert terms_of(method, [student.float()], [teacher.float()])["ofd"].value.isfinite()
    large = torch.full((1, 1, 2, 2), 1e15, requires_grad=True)
    loss = partial_distance(large, -large, torch.tensor([-1e15]))
    loss.backward()
    assert loss.isfinite()
    assert large.grad.isfinite().all()


def test_passes() -> None:
    """The teacher normalises by the batch."""
    passes = {one.name: one for one in OFD(OFD.Settings()).passes}
    assert passes["teacher"].mode == "batch"
    assert passes["student"].mode == "role"
    assert all(one.taps == {"pre"} for one in passes.values())
