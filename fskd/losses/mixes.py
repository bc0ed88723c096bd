"""Rows mixed with rows in another order, images and labels alike, as MixMatch and its heirs do."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def draw(n: int, alpha: float, rng: torch.Generator) -> tuple[Int[Tensor, " rows"], float]:
    """A random order of n rows, and max(l, 1-l) for l from Beta(alpha, alpha)."""
    order = torch.randperm(n, generator=rng)
    # torch draws Beta from the global generator only, so NumPy is seeded from ours.
    seed = int(torch.randint(2**62, (), generator=rng))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return order, max(share, 1 - share)


def mixed(rows: Tensor, order: Int[Tensor, " rows"], share: float) -> Tensor:
    """A share of every row, the rest of the row that another order puts in its place."""
    return share * rows + (1 - share) * rows[order.to(rows.device)]
