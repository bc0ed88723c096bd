"""Similarities between the rows of a batch: products of vectors, products of unit vectors.

A vector shorter than 1e-6 has no direction: its unit vector is 0 and passes no gradient (published
code divides by a floor and gives gradients near 1e12).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fskd.losses.features import full_precision
from fskd.losses.targets import at_least_float32

NO_LENGTH = 1e-6


def unit_rows(vectors: Float[Tensor, "batch dim"], eps: float = 0.0) -> Float[Tensor, "batch dim"]:
    """Rows divided by their L2 norm plus ``eps``; rows shorter than 1e-6 become 0.

    Args:
        vectors: One vector per row.
        eps: Added to the norms, where published code does so.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    vectors = at_least_float32(vectors)
    # A common factor first, so that the squares of the largest values stay finite.
    scale = vectors.detach().abs().amax().clamp(min=1.0)
    lengths = (vectors / scale).norm(dim=1, keepdim=True) * scale
    known = lengths.detach() > NO_LENGTH
    return torch.where(known, vectors, 0.0) / (lengths + eps).clamp(min=NO_LENGTH)


def gram(vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch"]:
    """Products of all pairs of rows, not rounded under autocast.

    Args:
        vectors: One vector per row.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        tensor([[5., 2.],
                [2., 1.]])
    """
    vectors = at_least_float32(vectors)
    with full_precision(vectors):
        return vectors @ vectors.T
