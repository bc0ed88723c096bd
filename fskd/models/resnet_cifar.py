"""CIFAR ResNets of depth 6n+2 and their four times wider variants.

He et al. 2016, arXiv:1512.03385, section 4.2, in the layout of HobbitLong/RepDistiller, whose
published checkpoints load as they are. Stages: three groups of blocks.
"""

from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions, run_stage
from fskd.models.staged import Stage, Staged

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum, before its ReLU.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map before the last ReLU, (rows, planes, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return out + (x if self.downsample is None else self.downsample(x))


class ResNet(Staged):
    """ResNet of depth 6n+2 for small images.

    Args:
        depth: 6n+2, at least 8.
        widths: Channels of the stem and of the three stages.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 3
    classifier_name = "fc"

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        n_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], n_blocks, 1)
        self.layer2 = _stage(widths[1], widths[2], n_blocks, 2)
        self.layer3 = _stage(widths[2], widths[3], n_blocks, 2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        return run_stage(self._layers()[index], x)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = x.mean((2, 3))
        return embedding, self.fc(embedding)

    def norm(self, index: int) -> nn.Module | None:
        return self._layers()[index][-1].bn2  # type: ignore[return-value]

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3


def _stage(in_planes: int, planes: int, n_blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(planes, planes, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(BasicBlock(in_planes, planes, stride), *rest)


@models.register("resnet8")
def resnet8(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 8, 0.08M parameters."""
    return ResNet(8, NARROW, num_classes, in_channels)


@models.register("resnet14")
def resnet14(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 14, 0.18M parameters."""
    return ResNet(14, NARROW, num_classes, in_channels)


@models.register("resnet20")
def resnet20(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 20, 0.28M parameters."""
    return ResNet(20, NARROW, num_classes, in_channels)


@models.register("resnet32")
def resnet32(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 32, 0.47M parameters."""
    return ResNet(32, NARROW, num_classes, in_channels)


@models.register("resnet44")
def resnet44(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 44, 0.67M parameters."""
    return ResNet(44, NARROW, num_classes, in_channels)


@models.register("resnet56")
def resnet56(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 56, 0.86M parameters."""
    return ResNet(56, NARROW, num_classes, in_channels)


@models.register("resnet110")
def resnet110(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 110, 1.74M parameters."""
    return ResNet(110, NARROW, num_classes, in_channels)


@models.register("resnet8x4")
def resnet8x4(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 8, four times wider, 1.23M parameters."""
    return ResNet(8, WIDE, num_classes, in_channels)


@models.register("resnet32x4")
def resnet32x4(num_classes: int, in_channels: int = 3) -> ResNet:
    """CIFAR ResNet of depth 32, four times wider, 7.43M parameters."""
    return ResNet(32, WIDE, num_classes, in_channels)
