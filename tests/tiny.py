"""Networks of a few hundred parameters with all taps, so that whole steps take milliseconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fskd.models.sections import reinitialised
from fskd.models.staged import Stage, Staged
from fskd.models.taps import FeatureNet
from fskd.seeding import derive
from fskd.train.roles import make_roles
from fskd.train.task import DistillTask
from fskd.types import TAPS, Shapes

SIZE = (3, 8, 8)


class Tiny(Staged):
    """Blocks of conv3x3 + BN + ReLU; a stage begins with its stride.

    Args:
        stem: Channels of the stem.
        stages: (channels, stride, convolutions) of each stage.
        classes: K.
    """

    classifier_name = "fc"

    def __init__(self, stem: int, stages: Sequence[tuple[int, int, int]], classes: int) -> None:
        super().__init__()
        self.n_stages, channels = len(stages), stem
        self.first, self.blocks = block(SIZE[0], stem, 1), nn.ModuleList()
        for width, stride, depth in stages:
            convs = [
                block(channels, width, stride),
                *(block(width, width) for _ in range(depth - 1)),
            ]
            self.blocks.append(nn.ModuleList(convs))
            channels = width
        self.fc = nn.Linear(channels, classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.first(x).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        before = x
        for conv in self.blocks[index]:
            before = conv(x)
            x = before.relu()
        return Stage(x, before)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = x.mean((2, 3))
        return embedding, self.fc(embedding)

    def norm(self, index: int) -> nn.Module | None:
        return self.blocks[index][-1][-1]


def block(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def tiny(stem: int, *stages: tuple[int, int, int], classes: int = 4, seed: int = 0) -> FeatureNet:
    """A network whose batch norms have seen some rows, so that their modes differ."""
    torch.manual_seed(seed)
    net = FeatureNet(Tiny(stem, stages, classes))
    return warmed(net, seed)


def warmed(net: FeatureNet, seed: int) -> FeatureNet:
    """The network after a few batches, its norms' weights moved away from 1 and 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(4)  # logits that are not all alike
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=rng))
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng) / 4)
        for _ in range(3):
            net.train()(0.5 + torch.randn(8, *SIZE, generator=rng))
    return net


def shapes_of(student: FeatureNet, teacher: FeatureNet | None, n: int, **more: Any) -> Shapes:
    """Shapes of a run on n examples whose classes alternate."""
    read = frozenset(TAPS)
    ours = student.tap_shapes(SIZE, read)
    theirs = None if teacher is None else teacher.tap_shapes(SIZE, read)
    classes = ours.logits[0]
    return Shapes(classes, n, ours, theirs, torch.arange(n) % classes, SIZE, **more)


def task_of(
    method: Any, students: Sequence[FeatureNet], teacher: nn.Module | None = None, seed: int = 0
) -> DistillTask:
    """Student, peers, roles and methods in one module."""

    def fresh(net: FeatureNet, role: str) -> FeatureNet:
        return reinitialised(net, derive(seed, "role", role))

    found = make_roles(method.roles, students, teacher, SIZE, fresh)
    return DistillTask({"student": students[0], **found.own}, method, found.shared)
