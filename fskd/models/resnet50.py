"""ResNet-50 with a stem for small images: 3x3, stride 1, no pooling.

He et al. 2016, arXiv:1512.03385, in the layout of HobbitLong/RepDistiller. Stages: four groups
of bottleneck blocks. The network for 224x224 images is ``timm:resnet50``.
"""

from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions, run_stage
from fskd.models.staged import Stage, Staged

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; returns the sum, before its ReLU.

    Args:
        in_planes: Channels of the input.
        planes: Channels inside; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        out_planes = EXPANSION * planes
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out_planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride, bias=False), nn.BatchNorm2d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map before the last ReLU, (rows, 4 planes, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNetBottleneck(Staged):
    """ResNet of bottleneck blocks for small images.

    Args:
        n_blocks: Blocks of each of the four stages.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 4
    classifier_name = "linear"

    def __init__(
        self, n_blocks: tuple[int, int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, n_blocks[0], 1)
        self.layer2 = _stage(256, 128, n_blocks[1], 2)
        self.layer3 = _stage(512, 256, n_blocks[2], 2)
        self.layer4 = _stage(1024, 512, n_blocks[3], 2)
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions(self)

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        return run_stage(self._layers()[index], x)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = x.mean((2, 3))
        return embedding, self.linear(embedding)

    def norm(self, index: int) -> nn.Module | None:
        return self._layers()[index][-1].bn3  # type: ignore[return-value]

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4


def _stage(in_planes: int, planes: int, n_blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(EXPANSION * planes, planes, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(Bottleneck(in_planes, planes, stride), *rest)


@models.register("resnet50")
def resnet50(num_classes: int, in_channels: int = 3) -> ResNetBottleneck:
    """ResNet-50 with a stem for small images, 23.7M parameters."""
    return ResNetBottleneck((3, 4, 6, 3), num_classes, in_channels)
