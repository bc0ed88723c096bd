"""Augmentation of whole batches as tensor operations, on any device."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from fskd.seeding import to_device
from fskd.types import ImageSet, Settings


class AugmentSettings(Settings):
    """Which random moves a training image undergoes; all off by default."""

    crop: int = Field(0, ge=0, description="Padding in pixels before a random crop to the size.")
    flip: bool = Field(False, description="Mirror left to right with probability 1/2.")
    affine: float = Field(
        0.0,
        ge=0,
        le=9,  # at 10 an image could shrink to nothing
        description="Strength of small affine moves: 1 is up to 10 degrees, 10 % scale and shift.",
    )

    @property
    def active(self) -> bool:
        """True if anything is random, so that a sample has more than one view."""
        return bool(self.crop or self.flip or self.affine)


class Part(NamedTuple):
    """Which rows of a joint batch are here; moves are drawn for all of them.

    Attributes:
        rows: Of the joint batch.
        own: Those that are here.
    """

    rows: int
    own: slice


def _drawn(drawn: Tensor, part: Part | None) -> Tensor:
    return drawn if part is None else drawn[..., part.own]


def _n(images: Tensor, part: Part | None) -> int:
    return len(images) if part is None else part.rows


def random_crop(
    images: Tensor, padding: int, rng: torch.Generator, part: Part | None = None
) -> Tensor:
    """Zero-pads by ``padding`` pixels and crops each image to its old size at a random place."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    drawn = torch.randint(2 * padding + 1, (2, _n(images, part)), generator=rng)
    corner = to_device(_drawn(drawn, part), images.device)
    rows = corner[0][:, None] + torch.arange(height, device=images.device)
    columns = corner[1][:, None] + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device)
    # Advanced indices around the channel slice put the channel axis last.
    crops = padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, rng: torch.Generator, part: Part | None = None) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    drawn = _drawn(torch.rand(_n(images, part), generator=rng), part)
    mirror = to_device(drawn < 0.5, images.device)
    return torch.where(mirror[:, None, None, None], images.flip(3), images)


def random_affine(
    images: Tensor, strength: float, rng: torch.Generator, part: Part | None = None
) -> Tensor:
    """Rotates, scales and shifts each float image a little; what comes in from outside is 0."""
    drawn = _drawn(torch.rand(4, _n(images, part), generator=rng), part)
    draw = (drawn * 2 - 1) * strength
    angle, scale = draw[0] * math.radians(10), 1 + 0.1 * draw[1]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # affine_grid's axes run from -1 to 1 on either side, so a shift of 10 % of the side is 0.2 and
    # a rotation of an oblong image needs the ratio of its sides.
    ratio = images.shape[2] / images.shape[3]
    moves = torch.stack(
        [cos, -sin * ratio, 0.2 * draw[2], sin / ratio, cos, 0.2 * draw[3]], 1
    ).view(-1, 2, 3)
    grid = F.affine_grid(to_device(moves, images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def normalise(
    images: UInt8[Tensor, "batch c h w"] | Float[Tensor, "batch c h w"], source: ImageSet
) -> Float[Tensor, "batch c h w"]:
    """(x/255 - mean) / std per channel, float32."""
    scale, shift = _scale_and_shift(source.mean, source.std, images.device)
    return images.float().mul(scale).sub_(shift)


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """1/(255 std) and mean/std, kept on the device."""
    spread = torch.tensor(std, device=device).view(1, -1, 1, 1)
    return 1 / (255 * spread), torch.tensor(mean, device=device).view(1, -1, 1, 1) / spread


def augment(
    images: Tensor, settings: AugmentSettings, rng: torch.Generator, part: Part | None = None
) -> Tensor:
    """Applies the active moves to images (B, C, H, W) on the scale 0..255.

    Args:
        images: The images.
        settings: Which moves.
        rng: Source of the draws, on the CPU.
        part: Which rows of a joint batch these are; None for all.
    """
    if settings.crop:
        images = random_crop(images, settings.crop, rng, part)
    if settings.flip:
        images = random_flip(images, rng, part)
    if settings.affine:
        images = random_affine(images.float(), settings.affine, rng, part)
    return images
