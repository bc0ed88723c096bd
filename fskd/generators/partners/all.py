"""Any row with any other, itself included."""

import torch
from torch import Tensor

from fskd.generators.partners import in_order, partners


@partners.register("all")
def permuted(targets: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Partners are a random permutation of the rows, self pairs included."""
    batch = len(targets)
    rounds = -(-n // batch)
    orders = [torch.randperm(batch, generator=rng) for _ in range(rounds)]
    return in_order(batch, n), torch.cat(orders)[:n]
