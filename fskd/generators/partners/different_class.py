"""A row of one class with a row of another."""

import torch
from torch import Tensor

from fskd.generators.partners import in_order, partners


@partners.register("different_class")
def of_another_class(targets: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Partners are drawn uniformly from the labelled rows of other classes; none for one class."""
    first, labels = in_order(len(targets), n), targets.cpu()
    other = (labels[:, None] != labels[None, :]).float()
    if not other.any():
        return None
    return first, torch.multinomial(other[first], 1, generator=rng).squeeze(1)
