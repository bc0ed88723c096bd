"""CE against its definition, written with loops."""

import math

import pytest
import torch
from steps import batch, joint, phase, speak

from fskd.methods.ce import CE
from fskd.types import Outputs


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
    method = joint("ce", label_smoothing=e)
    assert not phase(method).generated

    def loss(z: torch.Tensor) -> torch.Tensor:
        return speak(method, {"student": Outputs(z)}, batch(targets, 2))["ce"].value

    expected = slow_ce(logits[:rows], targets, e)
    assert loss(logits).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, logits)


def test_no_real_rows() -> None:
    """Without labels there is nothing to learn."""
    assert speak(joint("ce"), {"student": Outputs(torch.zeros(2, 5))}, batch(0, 2)) == {}


def test_smoothing_below_one() -> None:
    """Smoothing of 1 leaves nothing on the label."""
    with pytest.raises(ValueError, match="label_smoothing"):
        CE.Settings(label_smoothing=1.0)
