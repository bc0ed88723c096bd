"""CutMix against the published box rule and a loop over pixels."""

import math

import pytest
import torch
from pydantic import ValidationError

from fskd.generators.cutmix import CutMix, CutMixSettings, box_mask
from fskd.types import Batch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_box(lam: float, row: int, column: int, height: int, width: int) -> tuple[int, ...]:
    """(top, left, bottom, right) as published: half sides rounded down, cut off at the border."""
    side = math.sqrt(1 - lam)
    tall, wide = int(height * side), int(width * side)
    top, bottom = max(row - tall // 2, 0), min(row + tall // 2, height)
    left, right = max(column - wide // 2, 0), min(column + wide // 2, width)
    return top, left, bottom, right


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (32, 32), (1, 1), (7, 2)])
def test_slow_twin(height: int, width: int) -> None:
    """The box, for shares including 0 and 1 and centres at the corners."""
    n = 60
    lam = torch.rand(n, generator=rng(1))
    lam[:3] = torch.tensor([0.0, 1.0, 0.75])
    rows = torch.randint(height, (n,), generator=rng(2))
    columns = torch.randint(width, (n,), generator=rng(3))
    rows[:2], columns[:2] = 0, width - 1
    mask = box_mask(lam, torch.stack([rows, columns], 1), (height, width))
    assert mask.shape == (n, height, width)
    for m in range(n):
        top, left, bottom, right = slow_box(
            lam[m].item(), int(rows[m]), int(columns[m]), height, width
        )
        for h in range(height):
            for w in range(width):
                assert mask[m, h, w] == (top <= h < bottom and left <= w < right)


@pytest.mark.parametrize("sides", [(1,), (9,), (4, 5, 6)])
def test_boxes_of_other_dimensions(sides: tuple[int, ...]) -> None:
    """Stretches and volumes whose share is that of the image, as far as the border allows."""
    lam = torch.tensor([0.0, 0.271, 0.5, 1.0])
    middle = torch.tensor([[side // 2 for side in sides]] * 4)
    mask = box_mask(lam, middle, sides)
    assert mask.shape == (4, *sides)
    for row, share in zip(mask, lam.tolist(), strict=True):
        long = [int((1 - share) ** (1 / len(sides)) * side + 1e-6) for side in sides]
        expected = math.prod(
            2 * (cut // 2) if cut < side else side for cut, side in zip(long, sides, strict=True)
        )
        assert abs(int(row.sum()) - expected) <= expected * 0.5 + 1


def test_share_of_one_pastes_nothing() -> None:
    """Lambda = 1 has an empty box."""
    assert not box_mask(torch.ones(3), torch.tensor([[0, 0], [4, 4], [7, 7]]), (8, 8)).any()


def test_share_of_zero_pastes_all() -> None:
    """Lambda = 0 and the centre in the middle: the whole image."""
    assert box_mask(torch.zeros(1), torch.tensor([[4, 4]]), (8, 8)).all()


@pytest.mark.parametrize("pairs", ["all", "no_self", "different_class"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
@pytest.mark.parametrize("n", [4, 6, 15])
def test_weights_are_the_area(pairs: str, height: int, width: int, n: int) -> None:
    """Every pixel comes from one of the two parents, in the recorded shares, as one box."""
    rows, channels = 6, 2
    # Pixels are distinct over rows, so that each tells where it came from.
    images = torch.arange(rows * channels * height * width, dtype=torch.float32)
    images = images.view(rows, channels, height, width)
    batch = Batch(images, torch.arange(rows), torch.arange(rows))
    generator = CutMix(CutMixSettings(pairs=pairs))
    pasted = 0
    for seed in range(5):
        longer = generator(batch, rng(seed), n)
        assert longer.parents is not None
        assert longer.shares is not None
        for m in range(n):
            made = longer.inputs[rows + m]
            first, partner = longer.parents[m].tolist()
            assert first == m % rows
            if first == partner:
                assert torch.equal(made, images[first])
                continue
            kept = made == images[first]
            assert torch.equal(made, torch.where(kept, images[first], images[partner]))
            assert (kept == kept[:1]).all()  # the same box in every channel
            area = int(kept[0].sum()) / (height * width)
            assert longer.shares[m].tolist() == pytest.approx([area, 1 - area], abs=1e-6)
            box = (~kept[0]).nonzero()
            if len(box):
                pasted += 1
                sides = box.amax(0) - box.amin(0) + 1
                assert len(box) == int(sides.prod())
    assert pasted > n


def test_nothing_is_made_up() -> None:
    """Pixels stay within the range of the batch."""
    images = torch.randn(8, 3, 6, 6, generator=rng())
    batch = Batch(images, torch.arange(8), torch.arange(8))
    made = CutMix()(batch, rng(), 40).inputs
    assert torch.isin(made, images).all()


def test_draws_per_sample() -> None:
    """Boxes differ within a batch, and cover every pixel now and then."""
    images = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 1, 8, 8)
    batch = Batch(images, torch.arange(50), torch.arange(50))
    longer = CutMix(CutMixSettings(pairs="no_self"))(batch, rng(), 200)
    assert longer.shares is not None
    assert len(longer.shares[:, 0].unique()) > 15
    pasted = longer.inputs[50:] != images.repeat(4, 1, 1, 1)
    assert pasted.any(0).all()


def test_large_alpha_halves_the_box() -> None:
    """Beta(a, a) with large a: lambda near 1/2, so no box exceeds half of the image."""
    batch = Batch(torch.rand(4, 1, 32, 32, generator=rng()), torch.arange(4), torch.arange(4))
    longer = CutMix(CutMixSettings(alpha=1e6))(batch, rng(), 100)
    assert longer.shares is not None
    assert longer.shares[:, 1].max() <= 0.5
    assert longer.shares[:, 1].max() > 0.4


@pytest.mark.parametrize(("setting", "value"), [("alpha", 0), ("pairs", "same"), ("lam", "beta")])
def test_bad_settings(setting: str, value: object) -> None:
    """Refused by name."""
    with pytest.raises(ValidationError, match=setting):
        CutMixSettings(**{setting: value})
