"""VGG networks with batch normalisation and a single linear layer, for small images.

Simonyan and Zisserman 2015, arXiv:1409.1556, in the layout of HobbitLong/RepDistiller. Stages: the
five blocks, the first of which is the stem. The networks for 224x224 images are in torchvision
(``torchvision:vgg13_bn``).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions, init_linears
from fskd.types import Outputs

WIDTHS = (64, 128, 256, 512, 512)
# Smaller images are not halved a fourth time: the last block sees 4x4 at 32x32.
SIZE_OF_FOURTH_POOL = 64


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with BN, halved in between.

    Args:
        depths: Convolutions of each block.
        num_classes: K.
        in_channels: C.
    """

    classifier_name = "classifier"

    def __init__(self, depths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        inputs = (in_channels, *WIDTHS[:-1])
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(*sizes) for sizes in zip(inputs, WIDTHS, depths, strict=True)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convolutions(self)
        init_linears(self, 0.01)

    def taps(self, x: Tensor) -> Outputs:
        """All taps for images (rows, C, H, W)."""
        halved = (False, True, True, True, x.shape[2] >= SIZE_OF_FOURTH_POOL)
        blocks = (self.block0, self.block1, self.block2, self.block3, self.block4)
        stages, pre = [], []
        for block, halve in zip(blocks, halved, strict=True):
            before = block(F.max_pool2d(x, 2) if halve else x)
            x = before.relu()
            stages.append(x)
            pre.append(before)
        embedding = x.mean((2, 3))
        return Outputs(self.classifier(embedding), embedding, tuple(stages), tuple(pre))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (rows, K)."""
        return self.taps(x).logits


def _block(in_planes: int, planes: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        channels = in_planes if number == 0 else planes
        layers += [nn.Conv2d(channels, planes, 3, 1, 1), nn.BatchNorm2d(planes), nn.ReLU()]
    # The last ReLU belongs to ``taps``, which needs the map before it.
    return nn.Sequential(*layers[:-1])


@models.register("vgg8")
def vgg8(num_classes: int, in_channels: int = 3) -> VGG:
    """VGG of 8 layers with BN, 3.97M parameters."""
    return VGG((1, 1, 1, 1, 1), num_classes, in_channels)


@models.register("vgg11")
def vgg11(num_classes: int, in_channels: int = 3) -> VGG:
    """VGG of 11 layers with BN, 9.28M parameters."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels)


@models.register("vgg13")
def vgg13(num_classes: int, in_channels: int = 3) -> VGG:
    """VGG of 13 layers with BN, 9.46M parameters."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels)


@models.register("vgg16")
def vgg16(num_classes: int, in_channels: int = 3) -> VGG:
    """VGG of 16 layers with BN, 14.77M parameters."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


@models.register("vgg19")
def vgg19(num_classes: int, in_channels: int = 3) -> VGG:
    """VGG of 19 layers with BN, 20.09M parameters."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
