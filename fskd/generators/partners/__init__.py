"""Which rows are mixed with which: one rule a file, chosen with ``generator.pairs``.

A rule gets the classes of the rows (B,), -1 where a row has none, the number of pairs n > 0 and a
CPU generator; B > 0. It returns first parents and partners, two index tensors (n,) on the CPU, or
None if it allows no pair.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fskd.registry import Registry

Rule = Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor] | None]

partners: Registry[Rule] = Registry("rule of pairs", "fskd.generators.partners")


def in_order(batch: int, n: int) -> Tensor:
    """First parents: the rows in order, again and again if there are fewer than ``n``.

    Example:
        >>> in_order(3, 5).tolist()
        [0, 1, 2, 0, 1]
    """
    return torch.arange(batch).repeat(-(-n // batch))[:n]
