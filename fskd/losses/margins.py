"""What stands for the negative values of a channel before its activation: their mean."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gaussian_margin(
    mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    """E[x | x < 0] of a Gaussian per channel, -3*std where x < 0 is rarer than 1 in 1000.

    Heo et al., ICCV 2019, arXiv 1904.01866.

    Args:
        mean: Means.
        std: Standard deviations; their sign is ignored, and one of 0 stands for a very small one.

    Returns:
        Margins in float64.

    Example:
        >>> gaussian_margin(torch.tensor([0.0]), torch.tensor([1.0])).item()  # -sqrt(2 / pi)
        -0.7978845608028654
    """
    mean, std = mean.detach().double(), std.detach().double().abs().clamp(min=1e-30)
    below = torch.special.ndtr(-mean / std)
    density = (-((mean / std) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(below > 1e-3, mean - std * density / below, -3 * std)


def norm_margin(norm: nn.Module | None) -> Float[Tensor, " channels"] | None:
    """The margin behind a batch norm, whose bias and weight are mean and deviation; else None."""
    mean, std = (getattr(norm, name, None) for name in ("bias", "weight"))
    return None if mean is None or std is None else gaussian_margin(mean, std)


def measured_margins(batches: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Mean of the negative values per stage and channel, 0 where there is none.

    Args:
        batches: Maps (rows, C_l, H_l, W_l) of every stage, batch by batch.

    Returns:
        Margins (C_l,) of every stage, in float64.
    """
    seen: list[Tensor] = []  # per stage the sum and the number of negative values, (2, C_l)
    for maps in batches:
        low = [one.double().clamp(max=0).transpose(0, 1).flatten(1) for one in maps]
        found = [torch.stack([one.sum(1), (one < 0).sum(1).double()]) for one in low]
        seen = [a + b for a, b in zip(seen, found, strict=True)] if seen else found
    return [total / count.clamp(min=1) for total, count in seen]
