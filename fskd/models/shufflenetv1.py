"""ShuffleNet with three groups for small images.

Zhang et al. 2018, arXiv:1707.01083, in the layout of HobbitLong/RepDistiller. Stem: a 1x1
convolution at full resolution; stages: three groups of blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fskd.models.catalog import models
from fskd.models.layers import run_stage, shuffle_channels
from fskd.models.staged import Stage, Staged

STEM_WIDTH = 24
GROUPS = 3


class ShuffleBlock(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolution; returns the map before its ReLU.

    With stride 1 the input is added, with stride 2 the pooled input is appended.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the last convolution.
        stride: 1 or 2.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        inside = planes // 4
        self.stride = stride
        # The stem's few channels are not grouped.
        self.groups = 1 if in_planes == STEM_WIDTH else GROUPS
        self.conv1 = nn.Conv2d(in_planes, inside, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, planes, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        """Map before the last ReLU, (rows, C_out, H / stride, W / stride)."""
        out = shuffle_channels(self.bn1(self.conv1(x)).relu(), self.groups)
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1)


class ShuffleNetV1(Staged):
    """ShuffleNet of three stages.

    Args:
        widths: Channels of each stage.
        n_blocks: Blocks of each stage.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 3
    classifier_name = "linear"

    def __init__(
        self,
        widths: tuple[int, int, int],
        n_blocks: tuple[int, int, int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = _stage(STEM_WIDTH, widths[0], n_blocks[0])
        self.layer2 = _stage(widths[0], widths[1], n_blocks[1])
        self.layer3 = _stage(widths[1], widths[2], n_blocks[2])
        self.linear = nn.Linear(widths[2], num_classes)

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
        return self.layer1, self.layer2, self.layer3


def _stage(in_planes: int, planes: int, n_blocks: int) -> nn.Sequential:
    rest = (ShuffleBlock(planes, planes, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(ShuffleBlock(in_planes, planes - in_planes, 2), *rest)


@models.register("shufflenetv1")
def shufflenetv1(num_classes: int, in_channels: int = 3) -> ShuffleNetV1:
    """ShuffleNet with 3 groups, 0.95M parameters."""
    return ShuffleNetV1((240, 480, 960), (4, 8, 4), num_classes, in_channels)
