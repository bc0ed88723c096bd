"""Maths on feature maps: sizes made equal, attention maps, FSP matrices.

Maps are (rows, C, H, W). All compute in at least float32, also under autocast.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fskd.losses.targets import at_least_float32


def full_precision(x: Tensor) -> torch.autocast:
    """Context in which products on the tensor's device are not rounded by autocast."""
    return torch.autocast(x.device.type, enabled=False)


def pool_to_match(
    first: Float[Tensor, "batch channels_1 height_1 width_1"],
    second: Float[Tensor, "batch channels_2 height_2 width_2"],
) -> tuple[
    Float[Tensor, "batch channels_1 height width"], Float[Tensor, "batch channels_2 height width"]
]:
    """Both maps at the size of the smaller, by adaptive average pooling of the larger.

    The heights decide which one is smaller; equal sizes are returned as they are.

    Args:
        first: Feature maps.
        second: Feature maps of the same rows.

    Returns:
        The two maps with equal height and width, in the order given.

    Example:
        >>> small, large = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 8, 8)
        >>> [tuple(x.shape) for x in pool_to_match(small, large)]
        [(1, 2, 4, 4), (1, 3, 4, 4)]
    """
    first, second = at_least_float32(first), at_least_float32(second)
    if first.shape[2:] == second.shape[2:]:
        return first, second
    if first.shape[2] > second.shape[2]:
        return F.adaptive_avg_pool2d(first, (second.shape[2], second.shape[3])), second
    return first, F.adaptive_avg_pool2d(second, (first.shape[2], first.shape[3]))


def attention_map(
    features: Float[Tensor, "batch channels height width"], power: float = 2.0
) -> Float[Tensor, "batch pixels"]:
    """Where a map is active: mean over channels of abs(F)^power, scaled to unit L2 norm per row.

    Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928. A map that is zero everywhere stays zero.

    Args:
        features: Feature maps.
        power: Exponent, at least 1.

    Returns:
        One vector of H*W entries per row.
    """
    strength = at_least_float32(features).abs().pow(power).mean(1)
    return F.normalize(strength.flatten(1), dim=1)


def fsp_matrix(
    first: Float[Tensor, "batch channels_1 height_1 width_1"],
    second: Float[Tensor, "batch channels_2 height_2 width_2"],
) -> Float[Tensor, "batch channels_1 channels_2"]:
    """Flow between two maps of a network: G_ij = mean over pixels of first_i * second_j.

    Yim et al., CVPR 2017. The larger map is pooled to the size of the smaller.

    Args:
        first: Feature maps.
        second: Feature maps of the same rows.
    """
    first, second = pool_to_match(first, second)
    with full_precision(first):
        flow = torch.bmm(first.flatten(2), second.flatten(2).transpose(1, 2))
    return flow / (first.shape[2] * first.shape[3])
