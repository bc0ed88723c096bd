"""Twelve images of three classes, a network for them, and batches."""

import torch

from fskd.data.augment import AugmentSettings
from fskd.data.loader import DeviceLoader
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.types import ImageSet, Shapes

N, K = 12, 3


def images() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 1, 8, 8), generator=rng, dtype=torch.uint8)
    names = tuple("abc")
    return ImageSet(pixels, torch.arange(N) % K, names, (0.5,), (0.25,), "f", (1, 8, 8))


def network(seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    return FeatureNet(build("cnn_tiny", K, 1))


def shapes(net: FeatureNet) -> Shapes:
    taps = net.tap_shapes((1, 8, 8), frozenset({"embedding", "stages"}))
    return Shapes(K, N, taps, taps, images().targets, (1, 8, 8))


def loader(rows: int = 8) -> DeviceLoader:
    return DeviceLoader(images(), torch.arange(N), rows, AugmentSettings(), 0, torch.device("cpu"))
