"""A box of one sample pasted into another."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fskd.generators.base import Generator, GeneratorSettings, Mixed, generators
from fskd.generators.shares import draw_shares
from fskd.seeding import to_device


def box_mask(lam: Tensor, centre: Tensor, sides: Sequence[int]) -> Tensor:
    """True inside the pasted box, (n, *sides).

    The box has sides (1-lam)^(1/d) times the image's (rounded down) in d axes, is centred on an
    integer pixel and cut off at the border, as in the published code for d = 2.

    Args:
        lam: Share of the first parent before cutting off, (n,), in [0, 1].
        centre: Pixel of the centre, (n, d), int64.
        sides: Length of each of the d axes.
    """
    sizes = torch.tensor(sides)
    cut = ((1 - lam).pow(1 / len(sizes))[:, None] * sizes).long()
    low = (centre - cut // 2).clamp(min=0)
    high = torch.minimum(centre + cut // 2, sizes)
    inside = torch.ones(len(lam), *sides, dtype=torch.bool)
    for axis, side in enumerate(sides):
        pixels = torch.arange(side)
        along = (pixels >= low[:, axis, None]) & (pixels < high[:, axis, None])
        shape = [len(lam), *(side if i == axis else 1 for i in range(len(sides)))]
        inside &= along.view(shape)
    return inside


class CutMixSettings(GeneratorSettings):
    """How boxes are drawn."""

    alpha: float = Field(1.0, gt=0, description="lambda ~ Beta(alpha, alpha).")


@generators.register("cutmix")
class CutMix(Generator):
    """Pastes a random box of one sample into another (region mix).

    Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features*, ICCV 2019, arXiv 1905.04899; with teacher labels only, as in Wang et al., NeurIPS
    2022, arXiv 2012.02909. Box and lambda are drawn per sample, not per batch. A box spans
    all channels and has as many axes as there are behind the channels; of vectors it is a stretch.
    """

    Settings: ClassVar[type[GeneratorSettings]] = CutMixSettings
    settings: CutMixSettings

    def mix(self, first: Tensor, partner: Tensor, rng: torch.Generator) -> Mixed:
        n, *shape = first.shape
        sides = shape[1:] or shape
        lam = draw_shares(n, "beta", "sample", rng, alpha=self.settings.alpha)
        centre = (torch.rand(n, len(sides), generator=rng) * torch.tensor(sides)).long()
        box = box_mask(lam, centre, sides)
        share = 1 - box.float().flatten(1).mean(1)
        over_channels = box[:, None] if len(shape) > 1 else box
        inside = to_device(over_channels, first.device)
        return Mixed(torch.where(inside, partner, first), share)
