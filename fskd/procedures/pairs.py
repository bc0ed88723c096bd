"""Pairs of images, by number and mixed."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fskd.generators.mixup import between

MOST = 1 << 22  # pairs that are drawn from a permutation of all
AT_ONCE = 4096  # images that are mixed as floats


def pair(number: Int[Tensor, " m"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """The pairs i < j of these numbers, in the order (0,1), (0,2), (1,2), (0,3), ...

    Example:
        >>> [rows.tolist() for rows in pair(torch.arange(4))]
        [[0, 0, 1, 0], [1, 2, 2, 3]]
    """
    second = ((1 + (1 + 8 * number.double()).sqrt()) / 2).long()
    second = torch.where(second * (second - 1) // 2 > number, second - 1, second)
    return number - second * (second - 1) // 2, second


def distinct(total: int, count: int, rng: torch.Generator) -> Int[Tensor, " count"]:
    """Different whole numbers below a total, in random order."""
    if total <= max(MOST, 4 * count):
        return torch.randperm(total, generator=rng)[:count]
    drawn = torch.randint(total, (2 * count,), generator=rng).unique()
    return drawn[torch.randperm(len(drawn), generator=rng)[:count]]


def mixed(
    images: UInt8[Tensor, "n c h w"],
    first: Int[Tensor, " m"],
    second: Int[Tensor, " m"],
    share: Float[Tensor, " m"],
) -> UInt8[Tensor, "m c h w"]:
    """Share*images[first] + (1-share)*images[second], rounded to whole levels."""
    found = [images[:0]]
    for i, j, part in zip(*(rows.split(AT_ONCE) for rows in (first, second, share)), strict=True):
        mix = between(images[i].float(), images[j].float(), part)
        found.append(mix.round().to(torch.uint8))
    return torch.cat(found)
