"""Drawing the share that the first parent of a mixed row keeps."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

ShareRule = Literal["uniform", "beta", "fixed"]


def draw_shares(
    n: int,
    rule: ShareRule,
    per: Literal["sample", "batch"],
    rng: torch.Generator,
    alpha: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    value: float = 0.5,
) -> Tensor:
    """Shares lambda in [0, 1] of the first parents, (n,), float32 on the CPU.

    Args:
        n: How many.
        rule: ``uniform`` on [low, high], ``beta`` for Beta(alpha, alpha), ``fixed`` for ``value``.
        per: One draw per sample, or one for the whole batch.
        rng: CPU generator.
        alpha: Shape of the Beta distribution, > 0.
        low: Lower end of the interval.
        high: Upper end of the interval.
        value: The fixed share.
    """
    count = n if per == "sample" else 1
    if rule == "fixed":
        drawn = torch.full((count,), value)
    elif rule == "beta":
        # torch draws Beta from the global generator only, so NumPy is seeded from ours.
        seed = int(torch.randint(2**62, (), generator=rng))
        drawn = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
    else:
        drawn = low + (high - low) * torch.rand(count, generator=rng)
    return drawn if per == "sample" else drawn.expand(n)
