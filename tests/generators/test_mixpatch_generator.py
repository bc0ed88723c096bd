"""MixPatch against loops over pixels."""

import math
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fskd.errors import SettingError
from fskd.generators.mixpatch import MixPatch, MixPatchSettings, mix_patches, patch_sides
from fskd.generators.mixup import between
from fskd.types import Batch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(rows: int = 40, shape: tuple[int, ...] = (2, 8, 8), **settings: object) -> Tensor:
    """Mixes of a batch of ones with a batch of zeros: the shares of every pixel."""
    one = torch.ones(rows, *shape)
    return MixPatch(MixPatchSettings(**settings)).mix(one, torch.zeros_like(one), rng()).inputs


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "sides"), [(8, 8, (4, 4)), (4, 6, (2, 3)), (3, 2, (1, 1))]
)
def test_slow_twin(height: int, width: int, sides: tuple[int, int], rows: int) -> None:
    """Every pixel by its patch, counted row by row; with gradients to both parents."""
    shape = 3, 2, height, width
    first, partner = (torch.randn(shape, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    tall, wide = sides
    grid = height // tall, width // wide
    lam = torch.rand(rows, math.prod(grid), generator=rng(3), dtype=torch.float64)
    found = mix_patches(first, partner, lam, sides)
    for n, c, h, w in product(*map(range, shape)):
        share = lam[n if rows > 1 else 0, (h // tall) * grid[1] + w // wide].item()
        expected = share * first[n, c, h, w] + (1 - share) * partner[n, c, h, w]
        assert found[n, c, h, w].item() == pytest.approx(expected.item(), rel=1e-12)
    leaves = [x.requires_grad_(True) for x in (first, partner)]
    assert torch.autograd.gradcheck(lambda *xs: mix_patches(*xs, lam, sides), leaves)


def test_one_patch_is_mixup() -> None:
    """As large as the image, it is plain interpolation with one share, whatever the shape."""
    for shape in ((3, 8, 8), (1, 5, 9), (7,), (2, 3, 4, 5)):
        first, partner = (torch.randn(4, *shape, generator=rng(i)) for i in (1, 2))
        for per in ("sample", "batch"):
            mixer = MixPatch(MixPatchSettings(side="whole", lam_per=per))
            inputs, share = mixer.mix(first, partner, rng())
            torch.testing.assert_close(inputs, between(first, partner, share))


@pytest.mark.parametrize(("side", "patches"), [("whole", 1), ("half", 4), (8, 1), (4, 4), (2, 16)])
def test_patches_are_constant_and_share_is_their_mean(side: object, patches: int) -> None:
    one = torch.ones(5, 2, 8, 8)
    mixer = MixPatch(MixPatchSettings(side=side, lam_per="sample"))
    inputs, share = mixer.mix(one, torch.zeros_like(one), rng())
    assert torch.equal(inputs[:, 0], inputs[:, 1])  # the same in every channel
    assert all(len(row.unique()) == patches for row in inputs)
    torch.testing.assert_close(inputs.flatten(1).mean(1), share)


def test_who_shares_the_draws() -> None:
    """The whole batch as published; a row of its own with ``sample``."""
    together, apart = made(), made(lam_per="sample")
    assert len(together.flatten(1).unique(dim=0)) == 1
    assert len(apart.flatten(1).unique(dim=0)) == 40


def test_alpha() -> None:
    """Beta(a, a): variance 1 / (4 (2a + 1)) about one half, within four standard errors or so."""
    for alpha in (0.1, 1.0, 10.0):
        shares = made(4000, (1, 2, 2), alpha=alpha, side=1, lam_per="sample").flatten()
        assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_default_is_half_the_image() -> None:
    assert patch_sides(MixPatchSettings().side, (3, 32, 32)) == [16, 16]
    assert patch_sides("half", (1, 28, 28)) == [14, 14]
    assert patch_sides("half", (3, 4, 6)) == [2, 3]
    assert patch_sides("half", (10,)) == [5]


@pytest.mark.parametrize(
    ("side", "shape", "accepted"),
    [
        (5, (3, 32, 32), "32x32: 1, 2, 4, 8, 16, 32, half, whole"),
        (64, (3, 32, 32), "32x32: 1, 2, 4, 8, 16, 32, half, whole"),
        (4, (3, 4, 6), "4x6: 1, 2, half, whole"),
        ("half", (1, 5, 9), "5x9: 1, whole"),
        ("half", (1, 6, 9), "6x9: 1, 3, whole"),
        (2, (5,), "5: 1, 5, whole"),
    ],
)
def test_a_side_that_does_not_fit(side: object, shape: tuple[int, ...], accepted: str) -> None:
    with pytest.raises(SettingError, match=r"^generator\.side: ") as caught:
        MixPatch(MixPatchSettings(side=side)).check(shape)
    assert str(caught.value).endswith(f"expected a side that divides {accepted}")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("alpha", 0), ("alpha", -1), ("side", 0), ("side", "quarter"), ("side", 0.5), ("side", True),
     ("side", None), ("lam_per", "pixel"), ("lam", "beta")],
)  # fmt: skip
def test_bad_settings(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=setting) as caught:
        MixPatchSettings(**{setting: value})
    (error,) = caught.value.errors()
    assert error["loc"] == (setting,)


def test_draws_are_few() -> None:
    """Shares of the batch are drawn once: as many rows as one likes take the same draws."""
    batch = Batch(torch.rand(4, 1, 4, 4, generator=rng()), torch.arange(4), torch.arange(4))
    few, many = rng(1), rng(1)
    mixer = MixPatch()
    mixer.mix(batch.inputs[:1], batch.inputs[:1], few)
    mixer.mix(batch.inputs, batch.inputs, many)
    assert torch.equal(few.get_state(), many.get_state())
