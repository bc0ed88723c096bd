"""Points on the straight line between two samples."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from fskd.generators.base import Generator, GeneratorSettings, Mixed, generators
from fskd.generators.pairs import PairRule, ShareRule, draw_shares, pair
from fskd.seeding import to_device


def interpolate(
    images: Float[Tensor, "batch c h w"],
    partner: Int[Tensor, " n"],
    lam: Float[Tensor, " n"],
    first: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Lam * images[first] + (1 - lam) * images[partner].

    Args:
        images: Real images on one common scale; mixing commutes with normalisation.
        partner: Row of the second parent.
        lam: Share of the first parent, in [0, 1] (outside it extrapolates).
        first: Row of the first parent; rows 0..n-1 if None.

    Example:
        >>> x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> interpolate(x, torch.tensor([1, 0]), torch.tensor([0.25, 0.25])).flatten().tolist()
        [0.75, 0.25]
    """
    one = images[: len(partner)] if first is None else images[first]
    share = lam.to(images).view(-1, 1, 1, 1)
    return share * one + (1 - share) * images[partner]


class MixupSettings(GeneratorSettings):
    """How shares and partners are drawn."""

    lam: ShareRule = Field("uniform", description="Distribution of the share of the first parent.")
    alpha: float = Field(1.0, gt=0, description="beta: shape, as in Beta(alpha, alpha).")
    low: float = Field(0.0, ge=0, le=1, description="uniform: lower end.")
    high: float = Field(1.0, ge=0, le=1, description="uniform: upper end.")
    value: float = Field(0.5, ge=0, le=1, description="fixed: the share.")
    lam_per: Literal["sample", "batch"] = Field("sample", description="One draw per what.")
    pairs: PairRule = Field("all", description="Which pairs are mixed.")

    @model_validator(mode="after")
    def _ordered(self) -> "MixupSettings":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


@generators.register("mixup")
class Mixup(Generator):
    """Interpolates two samples: x~ = lambda*x_i + (1-lambda)*x_j.

    The generator of KD+ (Deng and Zhang, ICLR 2021 submission) and of mixup (Zhang et al., ICLR
    2018, arXiv 1710.09412). Lambda is uniform on [0, 1] and drawn per sample by default; published
    mixup draws one Beta(alpha, alpha) per batch (``lam=beta``, ``lam_per=batch``).
    """

    Settings: ClassVar[type[GeneratorSettings]] = MixupSettings
    settings: MixupSettings

    def mix(self, images: Tensor, targets: Tensor, n: int, rng: torch.Generator) -> Mixed:
        s = self.settings
        pairs = pair(targets, n, s.pairs, rng)
        if pairs is None:
            return Mixed(images[:0], targets[:0, None], images.new_zeros(0, 1))
        first, partner = (to_device(index, images.device) for index in pairs)
        lam = draw_shares(n, s.lam, s.lam_per, rng, s.alpha, s.low, s.high, s.value)
        lam = to_device(lam, images.device)
        return Mixed(
            interpolate(images, partner, lam, first),
            torch.stack([targets[first], targets[partner]], 1),
            torch.stack([lam, 1 - lam], 1),
        )
