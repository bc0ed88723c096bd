"""Features on an integer grid, so that sums do not depend on the order of summation."""

import math

import numpy as np


def to_grid(features: np.ndarray) -> np.ndarray:
    """Rounds features to integers that float64 adds and multiplies without error.

    Matrix products add in an order that depends on the library and its number of threads; with
    rounding errors, two nearly equal distances could so change places between machines. Here the
    features are scaled by one power of two to 53 bits less what sums need: dot products and
    squared distances of the result are integers of at most 2**53, and exact in any order. For
    D = 512 a step is at most 2**-20 of the largest feature, about float32's own precision.

    Args:
        features: (n, D), finite.

    Returns:
        Integers as float64 (n, D), of magnitude at most 2**b with 4 * D * 4**b <= 2**53.

    Example:
        >>> to_grid(np.array([[0.5, -0.25]], dtype=np.float32)) / 2**24
        array([[ 1. , -0.5]])
    """
    bits = (51 - math.ceil(math.log2(features.shape[1]))) // 2
    largest = np.abs(features).max(initial=0.0)
    _, exponent = math.frexp(float(largest))
    grid = features.astype(np.float64)  # a copy, then worked on in place
    return np.rint(np.ldexp(grid, bits - exponent, out=grid), out=grid)


def squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m) of grid points (n, D) and (m, D), exact."""
    products = points @ others.T
    products *= -2
    products += np.einsum("nd,nd->n", points, points)[:, None]
    products += np.einsum("md,md->m", others, others)
    return products
