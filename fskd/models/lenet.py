"""LeNet-5 and its half-width version for 28x28 and 32x32 images.

LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document recognition*,
Proceedings of the IEEE 1998, in the form that the literature on distillation with few or no data
uses (DAFL, Chen et al., ICCV 2019, arXiv 1904.01186; FS-BBT, Nguyen et al., ECCV 2022, arXiv
2207.12106): ReLU instead of tanh, plain max-pooling instead of trained sub-sampling, every map
connected to every map, and a linear output layer instead of radial basis functions.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fskd.models.catalog import models
from fskd.models.staged import Stage, Staged

SIDE = 32


class LeNet5(Staged):
    """Three 5x5 convolutions, the first two followed by 2x2 max-pooling, and two linear layers.

    28x28 images are padded to 32x32 as in the original, so that the third convolution sees 5x5 and
    leaves a single position. Stem and stages: the three convolutions, before pooling.

    Args:
        widths: Channels of the three convolutions and width of the hidden linear layer.
        num_classes: K.
        in_channels: C.
    """

    n_stages = 2
    classifier_name = "fc2"

    def __init__(self, widths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        first, second, third, hidden = widths
        self.conv1 = nn.Conv2d(in_channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.conv3 = nn.Conv2d(second, third, 5)
        self.fc1 = nn.Linear(third, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Map of images (rows, C, 28, 28) or (rows, C, 32, 32).

        Raises:
            ValueError: If the images have another size.
        """
        if x.shape[2:] not in ((28, 28), (SIDE, SIDE)):
            raise ValueError("LeNet-5 takes 28x28 or 32x32 images")
        return self.conv1(F.pad(x, ((SIDE - x.shape[3]) // 2,) * 4)).relu()

    def stage(self, index: int, x: Tensor) -> Stage:
        before = (self.conv2, self.conv3)[index](F.max_pool2d(x, 2))
        return Stage(before.relu(), before)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.fc1(x.flatten(1)).relu()
        return embedding, self.fc2(embedding)


@models.register("lenet5")
def lenet5(num_classes: int, in_channels: int = 1) -> LeNet5:
    """LeNet-5 with ReLU and max-pooling, 61,706 parameters on grey images and 10 classes."""
    return LeNet5((6, 16, 120, 84), num_classes, in_channels)


@models.register("lenet5_half")
def lenet5_half(num_classes: int, in_channels: int = 1) -> LeNet5:
    """LeNet-5 at half its width, 15,738 parameters on grey images and 10 classes."""
    return LeNet5((3, 8, 60, 42), num_classes, in_channels)
