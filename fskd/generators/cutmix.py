"""A box of one sample pasted into another."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fskd.generators.base import Generator, GeneratorSettings, Mixed, generators
from fskd.generators.pairs import PairRule, draw_shares, pair
from fskd.seeding import to_device


def box_mask(lam: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """True inside the pasted box, (n, 1, H, W).

    The box has sides sqrt(1-lam) times the image's (rounded down), is centred on an integer pixel
    and cut off at the border, as in the published code.

    Args:
        lam: Share of the first parent before cutting off, (n,), in [0, 1].
        centre: Row and column of the centre, (n, 2), int64.
        height: H.
        width: W.
    """
    side = (1 - lam).sqrt()
    sizes = torch.tensor([height, width])
    cut = (side[:, None] * sizes).long()
    low = (centre - cut // 2).clamp(min=0)
    high = torch.minimum(centre + cut // 2, sizes)
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= low[:, :1]) & (rows < high[:, :1])
    inside_columns = (columns >= low[:, 1:]) & (columns < high[:, 1:])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


class CutMixSettings(GeneratorSettings):
    """How boxes and partners are drawn."""

    alpha: float = Field(1.0, gt=0, description="lambda ~ Beta(alpha, alpha).")
    pairs: PairRule = Field("all", description="Which pairs are mixed.")


@generators.register("cutmix")
class CutMix(Generator):
    """Pastes a random box of one sample into another (region mix).

    Yun et al., *CutMix*, ICCV 2019, arXiv 1905.04899; with teacher labels only, as in Wang et al.,
    NeurIPS 2022, arXiv 2012.02909. Box and lambda are drawn per sample, not per batch.
    """

    Settings: ClassVar[type[GeneratorSettings]] = CutMixSettings
    settings: CutMixSettings

    def mix(self, images: Tensor, targets: Tensor, n: int, rng: torch.Generator) -> Mixed:
        pairs = pair(targets, n, self.settings.pairs, rng)
        if pairs is None:
            return Mixed(images[:0], targets[:0, None], images.new_zeros(0, 1))
        height, width = images.shape[2:]
        lam = draw_shares(n, "beta", "sample", rng, alpha=self.settings.alpha)
        centre = (torch.rand(n, 2, generator=rng) * torch.tensor([height, width])).long()
        mask = to_device(box_mask(lam, centre, height, width), images.device)
        first, partner = (to_device(index, images.device) for index in pairs)
        kept = 1 - mask.float().mean((1, 2, 3))
        return Mixed(
            torch.where(mask, images[partner], images[first]),
            torch.stack([targets[first], targets[partner]], 1),
            torch.stack([kept, 1 - kept], 1),
        )
