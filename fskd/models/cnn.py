"""A small teacher and student for 8x8 and 28x28 images, fast enough for two CPU cores."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fskd.models.catalog import models
from fskd.models.staged import Stage, Staged


class ConvNet(Staged):
    """Plain stack of conv3x3 + BN + ReLU; a stage begins where the resolution is halved.

    Args:
        widths: Output channels of each convolution, of the stem and of every stage; each stage
            begins with stride 2.
        num_classes: K.
        in_channels: C.
    """

    classifier_name = "fc"

    def __init__(self, widths: Sequence[Sequence[int]], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.n_stages = len(widths) - 1
        self.stages = nn.ModuleList()
        channels = in_channels
        for number, stage in enumerate(widths):
            convs = nn.ModuleList()
            for depth, width in enumerate(stage):
                stride = 2 if number > 0 and depth == 0 else 1
                convs.append(
                    nn.Sequential(
                        nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
                    )
                )
                channels = width
            self.stages.append(convs)
        self.fc = nn.Linear(channels, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return self._run(0, x).map

    def stage(self, index: int, x: Tensor) -> Stage:
        return self._run(index + 1, x)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = x.mean((2, 3))
        return embedding, self.fc(embedding)

    def norm(self, index: int) -> nn.Module | None:
        return self.stages.get_submodule(f"{index + 1}")[-1][-1]  # type: ignore[index]

    def _run(self, number: int, x: Tensor) -> Stage:
        before = x
        for conv in cast(nn.ModuleList, self.stages[number]):
            before = conv(x)
            x = before.relu()
        return Stage(x, before)


@models.register("cnn_tiny")
def cnn_tiny(num_classes: int, in_channels: int = 1) -> ConvNet:
    """Three convolutions, 6 thousand parameters; the default student on small images."""
    return ConvNet([[8], [16], [32]], num_classes, in_channels)


@models.register("cnn_medium")
def cnn_medium(num_classes: int, in_channels: int = 1) -> ConvNet:
    """Four convolutions, 28 thousand parameters; a teacher assistant between the other two."""
    return ConvNet([[16], [32, 32], [48]], num_classes, in_channels)


@models.register("cnn_small")
def cnn_small(num_classes: int, in_channels: int = 1) -> ConvNet:
    """Five convolutions, 121 thousand parameters; the default teacher on small images."""
    return ConvNet([[32, 32], [64, 64], [96]], num_classes, in_channels)
