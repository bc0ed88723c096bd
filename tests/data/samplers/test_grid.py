"""The grid is fine enough, and exact in any order of summation."""

import numpy as np
import pytest

from fskd.data.samplers.grid import squared_distances, to_grid


@pytest.mark.parametrize("d", [1, 2, 3, 64, 100, 512, 2048])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e30])
def test_bound_and_precision(d: int, scale: float) -> None:
    """4 * D * largest^2 <= 2^53, and a step is at most 2^-19 of the largest feature."""
    features = np.random.default_rng(d).normal(size=(50, d)) * scale
    grid = to_grid(features)
    largest = np.abs(grid).max()
    assert 4 * d * largest**2 <= 2**53
    unit = 2.0 ** np.round(np.log2(np.abs(features).max() / largest))  # a power of two
    assert np.abs(grid * unit - features).max() <= 0.5 * unit
    assert largest >= 2**19
    assert (grid == np.rint(grid)).all()


def test_worst_case_is_exact() -> None:
    """Corners of the cube, the farthest points there are."""
    grid = to_grid(np.array([[1.0] * 512, [-1.0] * 512, [1.0, -1.0] * 256]))
    found, corner = squared_distances(grid, grid), int(grid.max())
    expected = [[sum((int(a) - int(b)) ** 2 for a, b in zip(x, y, strict=True)) for y in grid]
                for x in grid]  # fmt: skip
    assert [[int(v) for v in row] for row in found] == expected
    assert expected[0][1] == 512 * (2 * corner) ** 2


def test_order_of_features_does_not_matter() -> None:
    """Bit for bit, whatever the library's summation does."""
    rng = np.random.default_rng(0)
    grid, shuffle = to_grid(rng.normal(size=(200, 300)).astype(np.float32)), rng.permutation(300)
    one = squared_distances(grid, grid[:70])
    two = squared_distances(np.ascontiguousarray(grid[:, shuffle]), grid[:70, shuffle])
    np.testing.assert_array_equal(one, two)


def test_zeros_and_source() -> None:
    """All zeros stay so; the features are not written to."""
    features = np.zeros((3, 4))
    assert not to_grid(features).any()
    features += 0.3
    to_grid(features)
    assert (features == 0.3).all()
