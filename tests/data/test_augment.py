"""Whole-batch moves against one image at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from fskd.data.augment import (
    AugmentSettings,
    augment,
    normalise,
    random_affine,
    random_crop,
    random_flip,
)
from fskd.types import ImageSet

Move = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
MOVES: dict[str, Move] = {
    "crop": lambda x, rng: random_crop(x, 2, rng),
    "flip": random_flip,
    "affine": lambda x, rng: random_affine(x.float(), 1.0, rng),
    "all": lambda x, rng: augment(x, AugmentSettings(crop=2, flip=True, affine=1.0), rng),
}
SHAPES = [(1, 1, 4, 4), (5, 3, 6, 6), (7, 3, 5, 9), (3, 2, 8, 3)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(1, 256, shape, generator=rng(5)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crop(shape: tuple[int, ...], dtype: torch.dtype, padding: int) -> None:
    """A window of the zero-padded image, at a place drawn for each image."""
    images, (batch, channels, height, width) = pixels(shape, dtype), shape
    made = random_crop(images, padding, rng(1))
    corners = torch.randint(2 * padding + 1, (2, batch), generator=rng(1))
    assert made.dtype == dtype
    assert made.is_contiguous()
    for b in range(batch):
        top, left = (int(corner) - padding for corner in corners[:, b])
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    inside = 0 <= top + h < height and 0 <= left + w < width
                    assert made[b, c, h, w] == (images[b, c, top + h, left + w] if inside else 0)


def test_crop_uses_every_place() -> None:
    """All (2p + 1)^2 corners occur."""
    images = torch.arange(1.0, 17).view(1, 1, 4, 4).expand(600, 1, 4, 4)
    made = random_crop(images, 1, rng())
    assert len({tuple(image.flatten().tolist()) for image in made}) == 9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Columns in reverse where the draw says so."""
    images, width = pixels(shape, dtype), shape[3]
    made = random_flip(images, rng(2))
    mirror = torch.rand(shape[0], generator=rng(2)) < 0.5
    assert made.dtype == dtype
    for b in range(shape[0]):
        for w in range(width):
            source = width - 1 - w if mirror[b] else w
            assert torch.equal(made[b, :, :, w], images[b, :, :, source])


def test_flip_half_of_them() -> None:
    """With probability 1/2 (four standard errors)."""
    images = torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2)
    share = random_flip(images, rng())[:, 0, 0, 0].mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)


def slow_affine(image: torch.Tensor, draw: list[float]) -> torch.Tensor:
    """One image, pixel by pixel in pixel units: where it comes from, then bilinear weights."""
    channels, height, width = image.shape
    angle, scale = draw[0] * math.radians(10), 1 + 0.1 * draw[1]
    made = torch.zeros(channels, height, width, dtype=torch.float64)
    for h in range(height):
        for w in range(width):
            x, y = w - (width - 1) / 2, h - (height - 1) / 2
            u = (math.cos(angle) * x - math.sin(angle) * y) / scale + 0.1 * draw[2] * width
            v = (math.sin(angle) * x + math.cos(angle) * y) / scale + 0.1 * draw[3] * height
            u, v = u + (width - 1) / 2, v + (height - 1) / 2
            for row in (math.floor(v), math.floor(v) + 1):
                for column in (math.floor(u), math.floor(u) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(v - row)) * (1 - abs(u - column))
                        made[:, h, w] += share * image[:, row, column]
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_affine(shape: tuple[int, ...], strength: float) -> None:
    """A rotation by up to 10 degrees, 10 % scale and shift; true for oblong images too."""
    images = pixels(shape, torch.float64)
    made = random_affine(images, strength, rng(3))
    draw = ((torch.rand(4, shape[0], generator=rng(3)) * 2 - 1) * strength).double()
    for b in range(shape[0]):
        expected = slow_affine(images[b], draw[:, b].tolist())
        torch.testing.assert_close(made[b], expected, rtol=1e-3, atol=0.02)


def test_affine_keeps_a_constant_inside() -> None:
    """Nothing is brighter than before; the outside is 0."""
    made = random_affine(torch.full((50, 1, 8, 8), 7.0), 2.0, rng())
    assert made.min() == 0
    assert made.max() <= 7 + 1e-4


@pytest.mark.parametrize("strength", [0.0, 1.0, 9.0])
def test_affine_is_finite(strength: float) -> None:
    """Also at the strongest moves allowed."""
    assert random_affine(torch.rand(500, 1, 4, 4), strength, rng()).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_identity(shape: tuple[int, ...]) -> None:
    """Padding 0, strength 0, nothing active."""
    images = pixels(shape)
    assert torch.equal(random_crop(images, 0, rng()), images)
    still = random_affine(images.float(), 0.0, rng())
    torch.testing.assert_close(still, images.float(), rtol=1e-5, atol=1e-3)
    assert augment(images, AugmentSettings(), rng()) is images
    assert not AugmentSettings().active


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_deterministic_and_pure(name: str, dtype: torch.dtype) -> None:
    """One stream, one result; input and global stream are left alone."""
    images = pixels((16, 3, 8, 8), dtype)
    before, state = images.clone(), torch.get_rng_state()
    first = MOVES[name](images, rng(1))
    assert torch.equal(first, MOVES[name](images, rng(1)))
    assert not torch.equal(first, MOVES[name](images, rng(2)))
    assert first.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "moves", [{"crop": 1}, {"flip": True}, {"affine": 0.5}, {"crop": 2, "flip": True}]
)
def test_active(moves: dict[str, float]) -> None:
    """Any move makes views differ."""
    assert AugmentSettings(**moves).active


@pytest.mark.parametrize(
    ("setting", "value"),
    [("crop", -1), ("affine", -0.1), ("affine", 10), ("flip", "maybe"), ("cutout", 1)],
)
def test_bad_settings(setting: str, value: object) -> None:
    """Refused by name."""
    with pytest.raises(ValidationError, match=setting):
        AugmentSettings(**{setting: value})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalise(channels: int, dtype: torch.dtype) -> None:
    """(x/255 - mean) / std in float32, per channel; the input is left as it is."""
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.2470, 0.2435, 0.2616)[:channels]
    images = pixels((4, channels, 5, 6), dtype)
    before = images.clone()
    source = ImageSet(images, torch.zeros(4), ("a",), mean, std, "", (channels, 5, 6))
    made = normalise(images, source)
    assert made.dtype == torch.float32
    assert torch.equal(images, before)
    for c in range(channels):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(made[:, c].double(), expected, rtol=1e-5, atol=1e-6)
