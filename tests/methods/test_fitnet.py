"""FitNet: the hint loss against loops, and the regressor for every size relation."""

import pytest
import torch
from speaking import joint, speak

from fskd.errors import SettingError
from fskd.methods.compose import Joint
from fskd.methods.fitnet import FitNet, Regressor, hint_loss
from fskd.types import Batch, Outputs, Shapes, TapShapes


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random maps in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_slow_twin() -> None:
    """Convolution, batch normalisation, ReLU and mean square, pixel by pixel."""
    x, goal = maps(3, 2, 3, 4), maps(3, 2, 2, 4, seed=1)
    torch.manual_seed(0)
    regressor = Regressor((2, 3, 4), (2, 2, 4)).double()
    kernel, bias = regressor.conv.weight.detach(), regressor.conv.bias.detach()
    assert kernel.shape == (2, 2, 2, 1)
    total = 0.0
    for c in range(2):
        values = {
            (b, h, w): bias[c].item()
            + sum(
                kernel[c, k, d, 0].item() * x[b, k, h + d, w].item()
                for k in range(2)
                for d in range(2)
            )
            for b in range(3)
            for h in range(2)
            for w in range(4)
        }
        mean = sum(values.values()) / len(values)
        var = sum((v - mean) ** 2 for v in values.values()) / len(values)
        for (b, h, w), v in values.items():
            guess = max(0.0, (v - mean) / (var + 1e-5) ** 0.5)
            total += (guess - goal[b, c, h, w].item()) ** 2
    assert hint_loss(regressor(x), goal).item() == pytest.approx(total / goal.numel(), rel=1e-10)


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((3, 8, 8), (5, 4, 4), (3, 3)),
        ((3, 4, 4), (5, 8, 8), (4, 4)),
        ((3, 4, 4), (5, 4, 4), (1, 1)),
        ((3, 7, 7), (5, 5, 5), (3, 3)),
        ((3, 6, 5), (2, 6, 3), (1, 3)),
        ((3, 1, 1), (2, 1, 1), (1, 1)),
    ],
)
def test_regressor_sizes(
    student: tuple[int, ...], teacher: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    """The regressor's output has the teacher's shape."""
    regressor = Regressor(student, teacher)
    assert regressor.conv.kernel_size == kernel
    assert regressor(torch.randn(2, *student)).shape == (2, *teacher)


@pytest.mark.parametrize(("s", "t"), [((3, 3), (8, 8)), ((4, 4), (8, 4)), ((5, 5), (9, 9))])
def test_odd_sizes_are_refused(s: tuple[int, int], t: tuple[int, int]) -> None:
    """The error names both sizes."""
    with pytest.raises(SettingError, match=rf"{s[0]}x{s[1]} in the student and {t[0]}x{t[1]}"):
        Regressor((2, *s), (2, *t))


def build(stages: tuple[tuple[int, ...], ...], **settings: int) -> Joint:
    """FitNet for two equal networks."""
    net = TapShapes((4,), (3,), stages[1:], stages[1:], stages[0])
    return joint("fitnet", Shapes(4, 8, net, net, torch.arange(8) % 4), **settings)


def test_hint_index() -> None:
    """The default needs three stages; the error names the value."""
    assert FitNet.Settings().hint_index == 2
    with pytest.raises(SettingError, match=r"hint_index: 2 is not accepted; .* 2 stages"):
        build(((2, 4, 4), (2, 2, 2)))
    build(((2, 4, 4), (2, 2, 2)), hint_index=1)


@pytest.mark.parametrize("rows", [1, 2])
def test_single_value_per_channel(rows: int) -> None:
    """Batch normalisation of one value is undefined: the term is left out, the label term stays."""
    run = build(((2, 1, 1),), hint_index=0)
    labels = torch.zeros(rows, dtype=torch.long)
    outputs = Outputs(torch.zeros(rows, 4), stem=torch.randn(rows, 2, 1, 1))
    batch = Batch(torch.zeros(rows, 1, 2, 2), labels, labels)
    terms = speak(run, batch, student=outputs, teacher=outputs)
    assert terms.keys() == ({"ce", "fitnet"} if rows > 1 else {"ce"})


def test_gradcheck() -> None:
    """Gradients through regressor and loss."""
    regressor, goal = Regressor((2, 2, 2), (3, 2, 2)).double(), maps(2, 3, 2, 2, seed=1)
    x = maps(2, 2, 2, 2, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: hint_loss(regressor(s), goal), x)
