"""VID: recorded values, the likelihood element by element, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from recorded import Case, maps, real_batch, shapes, step, taps, weighted
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.needs import check_needs
from fskd.methods.vid import VID, Regressor, gaussian_loss
from fskd.types import Outputs


def ours(name: str) -> str:
    """``stage0.regressor.2.weight`` is ``stages.0.mean.2.weight``."""
    stage, _, rest = name.removeprefix("stage").partition(".")
    return f"stages.{stage}." + rest.replace("log_scale", "rho").replace("regressor", "mean")


def built(student: list[Tensor], teacher: list[Tensor], **settings: float) -> VID:
    """The method for networks that give these maps."""
    method = VID(VID.Settings(**settings))
    method.shapes = shapes(taps(student), taps(teacher))
    method.build(method.shapes)
    return method


def terms_of(method: VID, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The weighted term."""
    batch = real_batch(torch.zeros(len(student[0]), dtype=torch.long))
    outputs = {"student": student, "teacher": teacher}
    given = {name: Outputs(stages=tuple(one)) for name, one in outputs.items()}
    return weighted(method.terms(step(batch, **given)))


@pytest.mark.parametrize("name", ["vid_c1", "vid_c2_pool"])
def test_recorded(name: str) -> None:
    """Loss, its parts, and gradients of maps and regressors; the first rho, too."""
    case = Case(name)
    student, teacher = case.stages("feat_s"), case.stages("feat_t")
    method = built(student, teacher).double()
    for i, stage in enumerate(method.stages):
        first = case.groups["ref"][f"stage{i}_log_scale_at_init"]
        torch.testing.assert_close(stage.rho.detach(), first, rtol=1e-6, atol=0)
    method.load_state_dict(case.weights(ours))
    parts = [stage(s, t) for stage, s, t in zip(method.stages, student, teacher, strict=True)]
    case.close(torch.stack(parts), "parts")
    case.loss(terms_of(method, student, teacher), dict(method.named_parameters()), ours)


def test_slow_twin() -> None:
    """Three linear maps with ReLU between, and the likelihood, number by number."""
    torch.manual_seed(0)
    x, goal = maps(2, 3, 3, 5), maps(2, 4, 3, 5, seed=1)
    regressor = Regressor(3, 4).double()
    with torch.no_grad():
        regressor.rho.copy_(torch.tensor([-3.0, 0.0, 2.0, 40.0]))
    weights = [layer.weight[:, :, 0, 0].tolist() for layer in (*regressor.mean,)[::2]]
    total = 0.0
    for b in range(2):
        for h in range(3):
            for w in range(5):
                values = x[b, :, h, w].tolist()
                for depth, weight in enumerate(weights):
                    values = [sum(a * v for a, v in zip(r, values, strict=True)) for r in weight]
                    if depth < 2:
                        values = [max(v, 0.0) for v in values]
                for c, (mean, rho) in enumerate(zip(values, regressor.rho.tolist(), strict=True)):
                    var = math.log1p(math.exp(rho)) + 1e-5
                    square = (mean - goal[b, c, h, w].item()) ** 2
                    total += (square / var + math.log(var)) / 2
    assert regressor(x, goal).item() == pytest.approx(total / goal.numel(), rel=1e-8)


@pytest.mark.parametrize("sizes", [((5, 4), (2, 2)), ((2, 2), (5, 4)), ((3, 3), (3, 3))])
def test_unlike_widths_and_sizes(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """The larger map is pooled; every parameter gets a gradient, also for one row."""
    student, teacher = [maps(1, 3, *sizes[0])], [maps(1, 7, *sizes[1], seed=1)]
    method = built(student, teacher).double()
    terms_of(method, student, teacher).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    size = tuple(min(pair) for pair in zip(*sizes, strict=True))
    pooled = [[F.adaptive_avg_pool2d(one, size) for one in side] for side in (student, teacher)]
    torch.testing.assert_close(terms_of(method, student, teacher), terms_of(method, *pooled))


def test_bf16() -> None:
    """Rounded maps are computed with in float32; under autocast, too."""
    student, teacher = [maps(3, 2, 4, 4)], [maps(3, 5, 4, 4, seed=1)]
    method = built(student, teacher)
    exact = terms_of(method, [s.float() for s in student], [t.float() for t in teacher])
    rounded = terms_of(method, [s.bfloat16() for s in student], [t.bfloat16() for t in teacher])
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            terms_of(method, [s.float() for s in student], [t.float() for t in teacher]),
            exact,
            rtol=1e-2,
            atol=0,
        )


@pytest.mark.parametrize("rho", [-1e4, 0.0, 1e4, 1e30])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e12])
def test_extreme_values(rho: float, size: float) -> None:
    """No variance overflows or vanishes; sure and right is below 0."""
    mean = torch.full((1, 1, 2, 2), size, requires_grad=True)
    scale = torch.full((1,), rho, requires_grad=True)
    loss = gaussian_loss(mean, torch.zeros(1, 1, 2, 2), scale)
    loss.backward()
    assert loss.isfinite()
    assert mean.grad.isfinite().all()
    assert scale.grad.isfinite().all()
    if rho == -1e4 and size == 0:
        assert loss.item() == pytest.approx(math.log(1e-5) / 2)


def test_the_teacher_is_constant_and_the_weight_counts() -> None:
    """No gradient reaches the teacher; the weight scales the term."""
    student, teacher = [maps(2, 3, 2, 2)], [maps(2, 4, 2, 2, seed=1).requires_grad_(True)]
    method = built(student, teacher, weight=2.0).double()
    twice = terms_of(method, student, teacher)
    twice.backward()
    assert teacher[0].grad is None
    one = built(student, teacher).double()
    one.load_state_dict(method.state_dict())
    torch.testing.assert_close(twice, 2 * terms_of(one, student, teacher))
    assert "stages.0.rho" in method.state_dict()


def test_unequal_stages_are_refused() -> None:
    """The error names both counts."""
    found = shapes(taps([maps(1, 2, 4, 4), maps(1, 2, 2, 2)]), taps([maps(1, 2, 4, 4)]))
    with pytest.raises(SettingError, match="2 stages and a teacher with 1"):
        check_needs("vid", VID.needs, found)
