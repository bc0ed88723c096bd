"""ShuffleNetV2 for small images.

Ma et al. 2018, arXiv:1807.11164, in the layout of HobbitLong/RepDistiller. Stem: a 1x1
convolution at full resolution; stages: three groups of blocks. A block passes half of its
channels on and ends in a channel shuffle; pre-activations are shuffled too, so that ``relu(pre)``
is the stage channel by channel (the public code leaves them unshuffled, which is the same up to
their order).
"""

import torch
from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.layers import run_stage, shuffle_channels
from fskd.models.staged import Stage, Staged

STEM_WIDTH = 24


class BasicBlock(nn.Module):
    """Keeps the first half of the channels and convolves the second.

    Args:
        planes: Channels of input and output, even.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map before its last ReLU, (rows, planes, H, W).

        The half that is kept is an output of ReLUs already, so a ReLU of the whole map is exact.
        """
        kept, out = x.chunk(2, 1)
        out = self.bn1(self.conv1(out)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return shuffle_channels(torch.cat([kept, out], 1), 2)


class DownBlock(nn.Module):
    """Two branches of stride 2, concatenated.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the output, even.
    """

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(in_planes, in_planes, 3, 2, 1, groups=in_planes, bias=False)
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv2 = nn.Conv2d(in_planes, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_planes, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map before its last ReLU, (rows, planes, H / 2, W / 2)."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn3(self.conv3(x)).relu()
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return shuffle_channels(torch.cat([left, right], 1), 2)


class ShuffleNetV2(Staged):
    """ShuffleNetV2 of three stages.

    Args:
        widths: Channels of each stage and of the head.
        n_blocks: Blocks of each stage after its first, which halves the resolution.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 3
    classifier_name = "linear"

    def __init__(
        self,
        widths: tuple[int, int, int, int],
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
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        return run_stage(self._layers()[index], x)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.bn2(self.conv2(x)).relu().mean((2, 3))
        return embedding, self.linear(embedding)

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3


def _stage(in_planes: int, planes: int, n_blocks: int) -> nn.Sequential:
    rest = (BasicBlock(planes) for _ in range(n_blocks))
    return nn.Sequential(DownBlock(in_planes, planes), *rest)


@models.register("shufflenetv2")
def shufflenetv2(num_classes: int, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 of width 1, 1.36M parameters."""
    return ShuffleNetV2((116, 232, 464, 1024), (3, 7, 3), num_classes, in_channels)
