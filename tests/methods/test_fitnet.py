"""FitNet: the hint loss against loops, and the regressor for every size relation."""

import pytest
import torch
from steps import Maps, alone, batch, joint, net, shapes, speak

from fskd.errors import SettingError
from fskd.methods.compose import Joint
from fskd.methods.fitnet import FitNet, Regressor, hint_loss
from fskd.types import Outputs


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


def build(stem: tuple[int, ...], stages: Maps, **settings: int) -> Joint:
    """FitNet for two equal networks."""
    return joint("fitnet", shapes(net(stages=stages, stem=stem)), **settings)


def test_hint_index() -> None:
    """The stem is index 0; the default is the second stage; the error names the value."""
    assert FitNet.Settings().hint_index == 2
    with pytest.raises(SettingError, match=r"hint_index: 2 is not accepted; .* 2 stages"):
        build((2, 4, 4), ((2, 2, 2),))
    build((2, 4, 4), ((2, 2, 2),), hint_index=1)


@pytest.mark.parametrize("hint", [0, 1, 2])
def test_hint(hint: int) -> None:
    """Each side's map is its own of that index, through the regressor between their widths."""
    widths, outputs = ((2, 3, 4), (5, 6, 7)), []
    pair = [net(stem=(a, 4, 4), stages=((b, 4, 4), (c, 2, 2))) for a, b, c in widths]
    for i, one in enumerate(pair):
        stem, *stages = (
            maps(2, *shape, seed=3 * i + k).float()
            for k, shape in enumerate((one.stem, *one.stages))
        )
        outputs.append(Outputs(torch.zeros(2, 4), stages=tuple(stages), stem=stem))
    method = joint("fitnet", shapes(*pair), hint_index=hint)
    nets = dict(zip(("student", "teacher"), outputs, strict=True))
    term = speak(method, nets, batch(2))["fitnet"]
    ours, theirs = ((one.stem, *one.stages)[hint] for one in outputs)
    own = alone(method)
    assert isinstance(own, FitNet)
    torch.testing.assert_close(term.value, hint_loss(own.regressor(ours), theirs))
    assert term.weight == 100.0


@pytest.mark.parametrize("rows", [1, 2])
def test_single_value_per_channel(rows: int) -> None:
    """Batch normalisation of one value is undefined: the term is left out, the label term stays."""
    method = build((2, 1, 1), (), hint_index=0)
    outputs = Outputs(torch.zeros(rows, 4), stem=torch.randn(rows, 2, 1, 1))
    terms = speak(method, {"student": outputs, "teacher": outputs}, batch(rows))
    assert terms.keys() == ({"ce", "fitnet"} if rows > 1 else {"ce"})


def test_gradcheck() -> None:
    """Gradients through regressor and loss."""
    regressor, goal = Regressor((2, 2, 2), (3, 2, 2)).double(), maps(2, 3, 2, 2, seed=1)
    x = maps(2, 2, 2, 2, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: hint_loss(regressor(s), goal), x)
