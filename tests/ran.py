"""A short training of a method that a test writes, on random images."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from fskd.config import OptimConfig, Runtime
from fskd.data.augment import AugmentSettings
from fskd.data.loader import DeviceLoader
from fskd.generators.base import Generator
from fskd.methods.base import (
    Method,
    methods,
)
from fskd.methods.compose import Joint
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Teacher
from fskd.train.batches import BatchMaker
from fskd.train.devices import launch
from fskd.train.loop import Training, fit
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch
from fskd.types import ImageSet, Shapes

N, K = 12, 3
BOTH = frozenset({"logits", "embedding"})


def images() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 1, 8, 8), generator=rng, dtype=torch.uint8)
    names = tuple("abc")
    return ImageSet(pixels, torch.arange(N) % K, names, (0.5,), (0.25,), "f", (1, 8, 8))


def network(seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    return FeatureNet(build("cnn_tiny", K, 1))


def shapes(net: FeatureNet) -> Shapes:
    taps = net.tap_shapes((1, 8, 8))
    return Shapes(K, N, taps, taps, images().targets, (1, 8, 8))


def joint(cls: type[Method], of: Shapes) -> Joint:
    """A toy alone, registered for a moment."""
    methods.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods._parts, "toy", cls)
        return Joint([("toy", cls.Settings())]).build(of)


class Ran:
    """A training that is over."""

    def __init__(
        self,
        cls: type[Method] | Joint,
        net: FeatureNet,
        source: FeatureNet | None = None,
        steps: int = 4,
        roles: Mapping[str, nn.Module] | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.method = cls if isinstance(cls, Joint) else joint(cls, shapes(net))
        device, self.counts, self.records = torch.device("cpu"), Counts(), list[dict[str, Any]]()
        loader = DeviceLoader(images(), torch.arange(N), 8, AugmentSettings(), 0, device)
        fabric = launch(Runtime(device="cpu"))
        watch = Watch(fabric, self.counts, self.records.append, lambda *_: None, math.inf, 1)
        n_generated = 0 if generator is None else 8
        batches = BatchMaker(loader, generator, self.method, n_generated, seed=0)
        self.task = DistillTask({"student": net, **(roles or {})}, self.method)
        known = None if source is None else Teacher(source, device)
        optim = OptimConfig(lr=0.05)
        fit(Training(self.task, known, batches, steps, optim, fabric, 0, watch))

    @property
    def toy(self) -> Any:
        return self.method.methods["toy"]
