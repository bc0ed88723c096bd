"""Points between two samples with a share of its own in every patch."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from fskd.errors import SettingError
from fskd.generators.base import Generator, GeneratorSettings, Mixed, generators
from fskd.generators.shares import draw_shares
from fskd.seeding import to_device


def _known(side: object) -> object:
    if side in ("half", "whole") or (type(side) is int and side > 0):
        return side
    raise ValueError("Input should be a number of pixels, 'half' or 'whole'")


Side = Annotated[int | Literal["half", "whole"], BeforeValidator(_known)]
Region = tuple[float, Side]


def mix_patches(
    first: Float[Tensor, "n ..."],
    partner: Float[Tensor, "n ..."],
    lam: Float[Tensor, "rows patches"],
    sides: Sequence[int],
) -> Float[Tensor, "n ..."]:
    """Lam[p] * first + (1 - lam[p]) * partner in patch p.

    Args:
        first: First parents, (n, C, *axes) or (n, *axes).
        partner: Second parents, of the same shape.
        lam: Share of the first parent in every patch, rows of patches first, in [0, 1]; one row for
            all samples, or n.
        sides: Sides of a patch in pixels, one for each of the last axes, which they divide.

    Example:
        >>> one, two = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> mix_patches(one, two, torch.tensor([[0.25, 0.75]]), (2, 1)).tolist()
        [[[[0.25, 0.75], [0.25, 0.75]]]]
    """
    axes = first.shape[-len(sides) :]
    grid = [long // side for long, side in zip(axes, sides, strict=True)]
    share = to_device(lam, first.device).to(first.dtype).view(-1, *grid)
    for axis, side in enumerate(sides, 1):
        share = share.repeat_interleave(side, axis)
    if first.dim() > share.dim():
        share = share[:, None]
    return share * first + (1 - share) * partner


def patch_sides(side: Side, shape: Sequence[int], setting: str = "generator.side") -> list[int]:
    """Sides of a patch along the axes behind the channels; of a vector, length of a stretch.

    Args:
        side: Pixels along every axis, or ``half`` or ``whole`` of each axis.
        shape: Of a row, (C, *axes), or (D,) for a vector.
        setting: Named if it does not fit.

    Raises:
        SettingError: Unless patches of this side fill every axis.
    """
    axes = list(shape[1:] or shape)
    if side == "whole":
        return axes
    if side == "half" and all(long % 2 == 0 for long in axes):
        return [long // 2 for long in axes]
    common = math.gcd(*axes)
    if side == "half" or common % side:
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
        words = ["half", "whole"] if all(long % 2 == 0 for long in axes) else ["whole"]
        accepted = f"a side that divides {'x'.join(map(str, axes))}: {', '.join(fitting + words)}"
        raise SettingError(setting, f"'{side}'" if side == "half" else side, accepted)
    return [side] * len(axes)


class MixPatchSettings(GeneratorSettings):
    """How large patches are, and how shares are drawn."""

    alpha: float = Field(1.0, gt=0, description="Share in a patch ~ Beta(alpha, alpha).")
    side: Side = Field("half", description="Of a patch: pixels, or half or whole of the image.")
    lam_per: Literal["sample", "batch"] = Field("batch", description="One draw per what.")


@generators.register("mixpatch")
class MixPatch(Generator):
    """Interpolates two samples patch by patch: x~[p] = lambda_p*x_i[p] + (1-lambda_p)*x_j[p].

    The image is cut into H/s * W/s square patches of side s, and every patch position p draws
    lambda_p ~ Beta(alpha, alpha); the whole batch shares them (``lam_per=batch``, as published).
    With s = H it is mixup. The row's share of the first parent is the mean of its lambdas.

    Of PE (Deng, Zheng and Zhang, *Personalized Education: Blind Knowledge Distillation*, ECCV 2022,
    doi 10.1007/978-3-031-19830-4_16). Differences: the side may be said in relation to the image
    (``half`` is 16 of CIFAR's 32), and then patches of an oblong image are oblong; a vector is cut
    into stretches, a volume into boxes.
    """

    Settings: ClassVar[type[GeneratorSettings]] = MixPatchSettings
    settings: MixPatchSettings

    @property
    def region(self) -> Region:
        """Alpha and side in use."""
        return self.settings.alpha, self.settings.side

    def check(self, shape: Sequence[int]) -> None:
        patch_sides(self.settings.side, shape)

    def mix(self, first: Tensor, partner: Tensor, rng: torch.Generator) -> Mixed:
        n, *shape = first.shape
        alpha, side = self.region
        sides = patch_sides(side, shape)
        patches = math.prod(shape[-len(sides) :]) // math.prod(sides)
        rows = n if self.settings.lam_per == "sample" else 1
        lam = draw_shares(rows * patches, "beta", "sample", rng, alpha).view(rows, patches)
        return Mixed(mix_patches(first, partner, lam, sides), lam.mean(1).expand(n))
