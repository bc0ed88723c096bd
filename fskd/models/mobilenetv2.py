"""MobileNetV2 at half width for small images.

Sandler et al. 2018, arXiv:1801.04381, in the layout of HobbitLong/RepDistiller. Stages: the last
block of each of four resolutions or widths. Blocks end without an activation, so their
pre-activations are the stages themselves.
"""

from typing import cast

from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions, init_linears
from fskd.models.staged import Stage, Staged

# (expands, channels at full width, blocks, stride of the first block)
GROUPS = (
    (False, 16, 1, 1),
    (True, 24, 2, 1),
    (True, 32, 3, 2),
    (True, 64, 4, 2),
    (True, 96, 3, 1),
    (True, 160, 3, 2),
    (True, 320, 1, 1),
)
STAGE_GROUPS = (1, 2, 4, 6)
HEAD_WIDTH = 1280


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3 convolution and linear projection, with a shortcut if sizes agree.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the output.
        stride: Stride of the depthwise convolution.
        expansion: Channels inside, relative to the input.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_planes * expansion
        self.has_shortcut = stride == 1 and in_planes == planes
        self.conv = nn.Sequential(
            nn.Conv2d(in_planes, inside, 1, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, planes, H / stride, W / stride)."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(Staged):
    """MobileNetV2 whose stem halves the image once.

    Args:
        expansion: Channels inside a block, relative to its input.
        width: Factor on all channels but the 1280 of the head.
        num_classes: K.
        in_channels: C.
    """

    n_stages = len(STAGE_GROUPS)
    classifier_name = "classifier"

    def __init__(self, expansion: int, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        planes = int(32 * width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, planes, 3, 2, 1, bias=False), nn.BatchNorm2d(planes)
        )
        self.blocks = nn.ModuleList()
        for expands, full_width, n_blocks, stride in GROUPS:
            group = nn.Sequential()
            for number in range(n_blocks):
                in_planes, planes = planes, int(full_width * width)
                group.append(
                    InvertedResidual(
                        in_planes,
                        planes,
                        stride if number == 0 else 1,
                        expansion if expands else 1,
                    )
                )
            self.blocks.append(group)
        self.conv2 = nn.Sequential(
            nn.Conv2d(planes, HEAD_WIDTH, 1, bias=False), nn.BatchNorm2d(HEAD_WIDTH), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(HEAD_WIDTH, num_classes))
        init_convolutions(self)
        init_linears(self, 0.01)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        first = STAGE_GROUPS[index - 1] + 1 if index > 0 else 0
        for number in range(first, STAGE_GROUPS[index] + 1):
            x = self.blocks[number](x)
        return Stage(x, x)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.conv2(x).mean((2, 3))
        return embedding, self.classifier(embedding)

    def norm(self, index: int) -> nn.Module | None:
        last = cast(nn.Sequential, self.blocks[STAGE_GROUPS[index]])[-1]
        return cast(InvertedResidual, last).conv[-1]


@models.register("mobilenetv2")
def mobilenetv2(num_classes: int, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 of half width, expansion 6, 0.81M parameters."""
    return MobileNetV2(6, 0.5, num_classes, in_channels)
