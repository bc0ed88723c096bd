"""AT against loops over rows, channels and pixels, and its limits."""

import math

import pytest
import torch
from steps import alone, batch, joint, net, phase, shapes, speak

from fskd.errors import SettingError
from fskd.losses.features import attention_map, pool_to_match
from fskd.methods.at import attention_transfer
from fskd.methods.compose import Joint
from fskd.methods.needs import check_needs
from fskd.types import Outputs


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


def test_unequal_stages_are_refused() -> None:
    """The error names both counts."""
    pair = shapes(net(stages=((2, 4, 4), (2, 2, 2))), net(stages=((2, 4, 4),)))
    with pytest.raises(SettingError, match="2 stages and a teacher with 1"):
        check_needs("at", alone(joint("at")).needs, pair)


def test_every_stage_and_not_the_stem() -> None:
    """The term is that of all stages; nothing else is asked for, the teacher's logits for KD."""
    ours, theirs = [maps(2, 3, 4, 4), maps(2, 4, 2, 2)], [maps(2, 2, 4, 4), maps(2, 5, 2, 2)]
    nets = {
        "student": Outputs(maps(2, 4), stages=tuple(ours)),
        "teacher": Outputs(stages=tuple(theirs)),
    }
    method = joint("at", weight=10.0)
    found = speak(method, nets, batch(2))
    assert (found["at"].weight, found["ce"].weight) == (10.0, 1.0)
    torch.testing.assert_close(found["at"].value, attention_transfer(ours, theirs))

    def asked(of: Joint) -> frozenset[str]:
        (run,) = (run for run in phase(of).runs if run.net == "teacher")
        return run.taps

    assert asked(method) == {"stages"}
    assert asked(joint("at", kd_weight=1.0)) == {"stages", "logits"}
