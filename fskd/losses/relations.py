"""Relations between the rows of a batch: distances and angles of embeddings.

Rows closer than 1e-6 count as one point: their distance is 0, they have no direction, and no
gradient passes between them (published code divides by the floor and gives gradients near 1e12).
Both functions hold every pairwise difference, rows^2 * dim numbers, and angles another rows^3.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fskd.losses.features import full_precision
from fskd.losses.targets import at_least_float32

SAME_POINT = 1e-6


def _differences(
    embeddings: Float[Tensor, "batch dim"],
) -> tuple[
    Float[Tensor, "batch batch dim"],
    Float[Tensor, "batch batch"],
    Bool[Tensor, "batch batch"],
]:
    """Vectors from row i to row j, their lengths (at least 1e-6), and where they are longer."""
    embeddings = at_least_float32(embeddings)
    vectors = embeddings.unsqueeze(0) - embeddings.unsqueeze(1)
    squared = vectors.pow(2).sum(2)
    apart = squared > SAME_POINT**2
    return vectors, squared.clamp(min=SAME_POINT**2).sqrt(), apart


def relative_distances(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch"]:
    """Distances between rows divided by the mean of the positive ones.

    Args:
        embeddings: One vector per row.

    Returns:
        Distance of every ordered pair, 0 on the diagonal; all 0 if the rows coincide.

    Example:
        >>> relative_distances(torch.tensor([[0.0], [3.0]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    _, lengths, apart = _differences(embeddings)
    distances = lengths * apart
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / mean.clamp(min=SAME_POINT)


def angles(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch batch"]:
    """Cosine of the angle at row i between the directions to rows j and k.

    Args:
        embeddings: One vector per row.

    Returns:
        Cosines by (i, j, k); 0 where j or k coincides with i.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> angles(corner)[0, 1]  # at row 0: no direction to itself, then 0 and 90 degrees
        tensor([0., 1., 0.])
    """
    vectors, lengths, apart = _differences(embeddings)
    units = vectors / lengths.unsqueeze(2) * apart.unsqueeze(2)
    with full_precision(units):
        return torch.bmm(units, units.transpose(1, 2))
