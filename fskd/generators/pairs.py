"""Choosing the partner that a row is mixed with, and the share that it keeps."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

PairRule = Literal["all", "no_self", "different_class"]
ShareRule = Literal["uniform", "beta", "fixed"]


def pair(
    targets: Tensor, n: int, rule: PairRule, rng: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Rows to mix: ``n`` first parents and their partners.

    First parents run through the batch in order, again and again if ``n`` exceeds it.

    Args:
        targets: Classes of the real rows, (B,).
        n: Number of pairs.
        rule: ``all``: partners are a random permutation, self pairs included; ``no_self``: a random
            cyclic permutation, which has no fixed point; ``different_class``: drawn uniformly from
            the rows of other classes.
        rng: CPU generator.

    Returns:
        Two index tensors (n,) on the CPU, or None if no pair is asked for or allowed by the rule
        (a batch of one, or of one class).
    """
    batch = len(targets)
    if batch == 0 or n == 0 or (rule == "no_self" and batch == 1):
        return None
    rounds = -(-n // batch)
    first = torch.arange(batch).repeat(rounds)[:n]
    if rule == "different_class":
        labels = targets.cpu()
        other = (labels[:, None] != labels[None, :]).float()
        if not other.any():
            return None
        return first, torch.multinomial(other[first], 1, generator=rng).squeeze(1)
    partners = []
    for _ in range(rounds):
        order = torch.randperm(batch, generator=rng)
        if rule == "no_self":
            cycle = torch.empty_like(order)
            cycle[order] = order.roll(-1)
            order = cycle
        partners.append(order)
    return first, torch.cat(partners)[:n]


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
