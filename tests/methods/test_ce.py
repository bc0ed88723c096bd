"""CE against its definition, written with loops."""

import math

import pytest
import torch
from speaking import generated, joint, speak

from fskd.methods.ce import CE
from fskd.types import Batch, Outputs, Shapes, TapShapes

SHAPES = Shapes(5, 10, TapShapes((5,), (3,), (), ()), None, torch.arange(10) % 5)


def slow_ce(logits: torch.Tensor, targets: torch.Tensor, e: float) -> float:
    """Mean of -sum_c target_c log q_c with target 1-e on the label and e/(K-1) elsewhere."""
    total = 0.0
    for row, label in zip(logits.tolist(), targets.tolist(), strict=True):
        norm = math.log(sum(math.exp(z) for z in row))
        for c, z in enumerate(row):
            share = 1 - e if c == label else e / (len(row) - 1)
            total -= share * (z - norm)
    return total / len(logits)


@pytest.mark.parametrize("e", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("rows", [1, 7])
def test_slow_twin(e: float, rows: int) -> None:
    """The term agrees with the loops; generated rows are not read."""
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(rows + 2, 5, generator=rng).double().requires_grad_(True)
    targets = torch.arange(rows) % 5
    batch = Batch(torch.zeros(rows + 2, 1, 2, 2), targets, targets, generated(rows, 2))
    run = joint("ce", SHAPES, label_smoothing=e)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return speak(run, batch, student=Outputs(z))["ce"].value

    expected = slow_ce(logits[:rows], targets, e)
    assert loss(logits).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, logits)


def test_no_real_rows() -> None:
    """Without labels there is nothing to learn."""
    empty = torch.zeros(0, dtype=torch.long)
    batch = Batch(torch.zeros(2, 1, 2, 2), empty, empty, generated(0, 2))
    assert speak(joint("ce", SHAPES), batch, student=Outputs(torch.zeros(2, 5))) == {}


def test_smoothing_below_one() -> None:
    """Smoothing of 1 leaves nothing on the label."""
    with pytest.raises(ValueError, match="label_smoothing"):
        CE.Settings(label_smoothing=1.0)
