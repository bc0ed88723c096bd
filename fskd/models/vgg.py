"""VGG networks with batch normalisation and a single linear layer, for small images.

Simonyan and Zisserman 2015, arXiv:1409.1556, in the layout of HobbitLong/RepDistiller. Stem: the
first of the five blocks; stages: the others. The networks for 224x224 images are in torchvision
(``torchvision:vgg13_bn``).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fskd.models.catalog import models
from fskd.models.layers import init_convolutions, init_linears
from fskd.models.staged import Stage, Staged

WIDTHS = (64, 128, 256, 512, 512)
# Smaller maps are not halved a fourth time: the last block sees 4x4 at images of 32x32.
SIZE_OF_FOURTH_POOL = 8


class VGG(Staged):
    """Five blocks of 3x3 convolutions with BN, halved in between.

    Args:
        depths: Convolutions of each block.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 4
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

    def stem(self, x: Tensor) -> Tensor:
        return self.block0(x).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        if index < self.n_stages - 1 or x.shape[2] >= SIZE_OF_FOURTH_POOL:
            x = F.max_pool2d(x, 2)
        before = self._blocks()[index](x)
        return Stage(before.relu(), before)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = x.mean((2, 3))
        return embedding, self.classifier(embedding)

    def norm(self, index: int) -> nn.Module | None:
        return self._blocks()[index][-1]

    def _blocks(self) -> tuple[nn.Sequential, ...]:
        return self.block1, self.block2, self.block3, self.block4


def _block(in_planes: int, planes: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        channels = in_planes if number == 0 else planes
        layers += [nn.Conv2d(channels, planes, 3, 1, 1), nn.BatchNorm2d(planes), nn.ReLU()]
    # The last ReLU belongs to ``stage``, which needs the map before it.
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
