"""Wide residual networks of depth 6n+4 for small images.

Zagoruyko and Komodakis 2016, arXiv:1605.07146, in the layout of HobbitLong/RepDistiller. The
activations come first in a block, so a stage is the plain sum that its last block returns, and its
pre-activation is that sum after the batch normalisation that follows it, before the ReLU. That
belongs to the part behind, so a section that ends at a stage has none. The stem is a bare
convolution.
"""

from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions
from fskd.models.staged import Stage, Staged
from fskd.types import Outputs


class WideBlock(nn.Module):
    """BN, ReLU and 3x3 convolution, twice, and a shortcut.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_planes != planes:
            self.convShortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and its normalised input before the ReLU.

        The second is the pre-activation tap of the previous stage; normalising again to obtain it
        would update the BN statistics twice.
        """
        normalised = self.bn1(x)
        active = normalised.relu()
        out = self.conv2(self.bn2(self.conv1(active)).relu())
        return out + (x if self.convShortcut is None else self.convShortcut(active)), normalised


class WideStage(nn.Module):
    """Blocks of equal resolution; the level of nesting that checkpoints have.

    Args:
        in_planes: Channels of the input.
        planes: Channels of the output.
        n_blocks: Blocks, at least 1.
        stride: Stride of the first block.
    """

    def __init__(self, in_planes: int, planes: int, n_blocks: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(planes, planes, 1) for _ in range(n_blocks - 1))
        self.layer = nn.Sequential(WideBlock(in_planes, planes, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's output and the first block's normalised input."""
        first, *rest = self.layer
        x, normalised = first(x)
        for block in rest:
            x, _ = block(x)
        return x, normalised


class WideResNet(Staged):
    """Wide ResNet of depth 6n+4.

    Args:
        depth: 6n+4, at least 10.
        widen_factor: Width relative to 16, 32 and 64 channels.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 3
    classifier_name = "fc"

    def __init__(self, depth: int, widen_factor: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        n_blocks = (depth - 4) // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(16, widths[0], n_blocks, 1)
        self.block2 = WideStage(widths[0], widths[1], n_blocks, 2)
        self.block3 = WideStage(widths[1], widths[2], n_blocks, 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def stage(self, index: int, x: Tensor) -> Stage:
        return Stage((self.block1, self.block2, self.block3)[index](x)[0], None)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._classify(self.bn1(x))

    def norm(self, index: int) -> nn.Module | None:
        follow = (self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1)
        return follow[index]  # type: ignore[return-value]

    def taps(self, x: Tensor) -> Outputs:
        """All taps for images (rows, C, H, W).

        Written out, as what stands behind a stage gives its pre-activation.
        """
        stem = self.conv1(x)
        first, _ = self.block1(stem)
        second, first_pre = self.block2(first)
        third, second_pre = self.block3(second)
        third_pre = self.bn1(third)
        embedding, logits = self._classify(third_pre)
        stages, pre = (first, second, third), (first_pre, second_pre, third_pre)
        return Outputs(logits, embedding, stages, pre, stem)

    def _classify(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        embedding = normalised.relu().mean((2, 3))
        return embedding, self.fc(embedding)


@models.register("wrn_16_1")
def wrn_16_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 16 and width 1, 0.18M parameters."""
    return WideResNet(16, 1, num_classes, in_channels)


@models.register("wrn_16_2")
def wrn_16_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 16 and width 2, 0.70M parameters."""
    return WideResNet(16, 2, num_classes, in_channels)


@models.register("wrn_40_1")
def wrn_40_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 40 and width 1, 0.57M parameters."""
    return WideResNet(40, 1, num_classes, in_channels)


@models.register("wrn_40_2")
def wrn_40_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Wide ResNet of depth 40 and width 2, 2.26M parameters."""
    return WideResNet(40, 2, num_classes, in_channels)
