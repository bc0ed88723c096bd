"""Unit vectors and products at the edge."""

import torch

from fskd.losses.similarities import gram, unit_rows


def test_no_direction() -> None:
    """Rows of length 0 become 0 and get no gradient; the others keep theirs."""
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-8, 0.0]], requires_grad=True)
    units = unit_rows(vectors)
    torch.testing.assert_close(units, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]]))
    (units * torch.tensor([[1.0, 2.0]])).sum().backward()
    assert (vectors.grad[[0, 2]] == 0).all()
    assert vectors.grad[1].abs().max() > 0


def test_large_values() -> None:
    """Values whose squares are no float32 have a direction, and a finite gradient."""
    vectors = torch.tensor([[3e30, 4e30], [3.0, 4.0]], requires_grad=True)
    units = unit_rows(vectors)
    torch.testing.assert_close(units[0], torch.tensor([0.6, 0.8]))
    units.sum().backward()
    assert vectors.grad.isfinite().all()


def test_full_precision_under_autocast() -> None:
    """Products are not rounded to bfloat16."""
    vectors = torch.rand(4, 16)
    expected = gram(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram(vectors), expected)
    assert gram(vectors.bfloat16()).dtype == torch.float32
