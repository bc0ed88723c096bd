"""Points on the straight line between two samples."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from fskd.generators.base import Generator, GeneratorSettings, Mixed, generators
from fskd.generators.shares import ShareRule, draw_shares
from fskd.seeding import to_device


def interpolate(
    images: Float[Tensor, "batch ..."],
    partner: Int[Tensor, " n"],
    lam: Float[Tensor, " n"],
    first: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n ..."]:
    """Lam * images[first] + (1 - lam) * images[partner].

    Args:
        images: Real images, or vectors, on one common scale; mixing commutes with normalisation.
        partner: Row of the second parent.
        lam: Share of the first parent, in [0, 1] (outside it extrapolates).
        first: Row of the first parent; rows 0..n-1 if None.

    Example:
        >>> x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> interpolate(x, torch.tensor([1, 0]), torch.tensor([0.25, 0.25])).flatten().tolist()
        [0.75, 0.25]
    """
    one = images[: len(partner)] if first is None else images[first]
    return between(one, images[partner], lam)


def between(first: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Lam * first + (1 - lam) * partner for rows (n, *shape) and shares (n,)."""
    share = to_device(lam, first.device).to(first.dtype).view(-1, *[1] * (first.dim() - 1))
    return share * first + (1 - share) * partner


class MixupSettings(GeneratorSettings):
    """How shares are drawn."""

    lam: ShareRule = Field("uniform", description="Distribution of the share of the first parent.")
    alpha: float = Field(1.0, gt=0, description="beta: shape, as in Beta(alpha, alpha).")
    low: float = Field(0.0, ge=0, le=1, description="uniform: lower end.")
    high: float = Field(1.0, ge=0, le=1, description="uniform: upper end.")
    value: float = Field(0.5, ge=0, le=1, description="fixed: the share.")
    lam_per: Literal["sample", "batch"] = Field("sample", description="One draw per what.")

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

    def mix(self, first: Tensor, partner: Tensor, rng: torch.Generator) -> Mixed:
        s = self.settings
        lam = draw_shares(len(first), s.lam, s.lam_per, rng, s.alpha, s.low, s.high, s.value)
        return Mixed(between(first, partner, lam), lam)
