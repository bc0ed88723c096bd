"""A short training of a method that a test writes, on random images."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from toys import loader, shapes

from fskd.config import Runtime
from fskd.generators.base import Generator
from fskd.methods.base import Method
from fskd.methods.compose import Joint
from fskd.models.taps import FeatureNet
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.batches import BatchMaker
from fskd.train.devices import launch
from fskd.train.loop import Training, fit
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch
from fskd.types import Shapes

BOTH = frozenset({"logits", "embedding"})


def joint(cls: type[Method], of: Shapes) -> Joint:
    """A toy alone."""
    return Joint({"toy": cls(cls.Settings())}).build(of)


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
        fabric = launch(Runtime(device="cpu"))
        watch = Watch(fabric, self.counts, self.records.append, lambda *_: None, math.inf, 1)
        n_generated = 0 if generator is None else 8
        batches = BatchMaker(loader(), generator, self.method, n_generated, seed=0)
        self.task = DistillTask({"student": net, **(roles or {})}, self.method)
        known = None if source is None else Teacher(source, device)
        optim = OptimConfig(lr=0.05)
        fit(Training(self.task, known, batches, steps, optim, fabric, 0, watch))

    @property
    def toy(self) -> Any:
        return self.method.methods["toy"]
