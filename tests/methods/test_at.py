"""AT against loops over rows, channels and pixels, and its limits."""

import math

import pytest
import torch
from speaking import joint

from fskd.errors import SettingError
from fskd.losses.features import attention_map, pool_to_match
from fskd.methods.at import attention_transfer
from fskd.methods.base import methods
from fskd.methods.compose import join
from fskd.methods.needs import check_needs
from fskd.types import Shapes, TapShapes


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random maps in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_map(features: torch.Tensor, power: float) -> list[float]:
    """Unit vector of mean_c |F_c|^p over the pixels of one row."""
    channels, height, width = features.shape
    pixels = [
        sum(abs(features[c, h, w].item()) ** power for c in range(channels)) / channels
        for h in range(height)
        for w in range(width)
    ]
    norm = math.sqrt(sum(pixel**2 for pixel in pixels))
    return [pixel / norm for pixel in pixels]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("rows", "height", "width"), [(1, 3, 5), (4, 4, 4)])
def test_slow_twin(power: float, rows: int, height: int, width: int) -> None:
    """Sum over stages of the mean squared difference."""
    student = [maps(rows, 2, height, width, seed=1), maps(rows, 3, 2, 2, seed=2)]
    teacher = [maps(rows, 4, height, width, seed=3), maps(rows, 5, 2, 2, seed=4)]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        squares = [
            (a - b) ** 2
            for row in range(rows)
            for a, b in zip(slow_map(s[row], power), slow_map(t[row], power), strict=True)
        ]
        total += sum(squares) / len(squares)
    actual = attention_transfer(student, teacher, power)
    assert actual.item() == pytest.approx(total, rel=1e-10)


def test_larger_map_is_pooled() -> None:
    """Either side may be the larger one; pixels are averaged."""
    large, small = maps(2, 3, 4, 4), maps(2, 5, 2, 2, seed=1)
    pooled = large.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close(pool_to_match(large, small)[0], pooled)
    torch.testing.assert_close(pool_to_match(small, large)[1], pooled)
    torch.testing.assert_close(
        attention_transfer([large], [small]), attention_transfer([pooled], [small])
    )


def test_limits() -> None:
    """0 for equal maps, whatever their scale and the number of channels; zero maps stay zero."""
    x = maps(2, 3, 4, 4)
    assert attention_transfer([x], [torch.cat([x, x], 1) * 7]).item() == pytest.approx(0, abs=1e-20)
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    assert attention_map(zero).abs().sum() == 0
    attention_transfer([zero], [torch.ones(1, 2, 3, 3)]).backward()
    assert zero.grad.isfinite().all()


def test_gradcheck() -> None:
    """Closed-form and numeric gradients agree, pooling included."""
    teacher = maps(2, 2, 2, 2, seed=5)
    student = maps(2, 3, 4, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: attention_transfer([s], [teacher]), student)


def net(*stages: tuple[int, ...]) -> TapShapes:
    """A network with these stages."""
    return TapShapes((4,), (3,), stages, stages)


def test_unequal_stages_are_refused() -> None:
    """The error names both counts."""
    student, teacher = net((2, 4, 4), (2, 2, 2)), net((2, 4, 4))
    shapes = Shapes(4, 8, student, teacher, torch.arange(8) % 4)
    with pytest.raises(SettingError, match="2 stages and a teacher with 1"):
        check_needs("at", joint("at", shapes).methods["at"].needs, shapes)


def test_reads_the_teachers_logits_only_for_kd() -> None:
    """With kd_weight 0 the teacher's logits are not asked for."""
    at = methods.get("at").Settings
    assert join([("at", at())]).reads("teacher") == {"stages"}
    assert join([("at", at(kd_weight=1.0))]).reads("teacher") == {"stages", "logits"}
