"""Mixup, the method: interpolated labels against a loop, and its limits."""

import math

import pytest
import torch
from steps import batch, joint, phase, speak, values

from fskd.types import Batch, Outputs


def mixed_batch(share: torch.Tensor, parents: torch.Tensor, n_real: int = 3) -> Batch:
    """Real rows followed by generated rows with two parents."""
    weights = torch.stack([share, 1 - share], 1)
    return batch(n_real, len(share))._replace(parents=parents, shares=weights)


def run(logits: torch.Tensor, rows: Batch) -> dict[str, torch.Tensor]:
    """Terms with default settings; generated rows are asked for, and no teacher."""
    method = joint("mixup")
    assert (phase(method).generated, phase(method).asks) == (True, False)
    return values(speak(method, {"student": Outputs(logits)}, rows))


def test_slow_twin() -> None:
    """lam*CE(y_i) + (1-lam)*CE(y_j) per row, averaged; gradients checked."""
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(7, 5, generator=rng).double().requires_grad_(True)
    share = torch.rand(4, generator=rng).double()
    parents = torch.randint(5, (4, 2), generator=rng)
    rows = mixed_batch(share, parents)
    total = 0.0
    for row, lam, (i, j) in zip(logits[3:].tolist(), share.tolist(), parents.tolist(), strict=True):
        norm = math.log(sum(math.exp(z) for z in row))
        total += lam * (norm - row[i]) + (1 - lam) * (norm - row[j])
    assert run(logits, rows)["mixed"].item() == pytest.approx(total / 4, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: run(z, rows)["mixed"], logits)


def test_share_of_one_is_cross_entropy() -> None:
    """With lambda 1 the second parent does not matter."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    parents = torch.tensor([[0, 4], [1, 4], [2, 4]])
    losses = run(logits, mixed_batch(torch.ones(3), parents))
    expected = torch.nn.functional.cross_entropy(logits[3:], parents[:, 0])
    torch.testing.assert_close(losses["mixed"], expected)


def test_terms_without_rows() -> None:
    """Each group of rows brings its own term."""
    rows = mixed_batch(torch.rand(2), torch.zeros(2, 2, dtype=torch.long), n_real=0)
    assert run(torch.zeros(2, 5), rows).keys() == {"mixed"}
    assert run(torch.zeros(2, 5), batch(2)).keys() == {"ce"}


def test_unlabelled_generator_is_refused() -> None:
    """Generated rows without parents cannot be used."""
    rows = mixed_batch(torch.rand(2), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="mixes no labelled rows"):
        run(torch.zeros(5, 5), rows._replace(parents=None, shares=None))
