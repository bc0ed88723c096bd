"""Any row with any other."""

import torch
from torch import Tensor

from fskd.generators.partners import in_order, partners


@partners.register("no_self")
def cycled(targets: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Partners are a random cyclic permutation, which has no fixed point; none for one row."""
    batch = len(targets)
    if batch == 1:
        return None
    cycles = []
    for _ in range(-(-n // batch)):
        order = torch.randperm(batch, generator=rng)
        cycle = torch.empty_like(order)
        cycle[order] = order.roll(-1)
        cycles.append(cycle)
    return in_order(batch, n), torch.cat(cycles)[:n]
