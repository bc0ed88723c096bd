"""Networks that a test names as ``plain_net:function``: without batch statistics, with dropout."""

from torch import nn


def no_norm(num_classes: int, in_channels: int = 1) -> nn.Module:
    """Convolution and classifier without BatchNorm, so that rows do not see each other."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def dropout(num_classes: int, in_channels: int = 1) -> nn.Module:
    """The same with dropout, which draws from torch's global generator."""
    return nn.Sequential(no_norm(32, in_channels), nn.Dropout(0.5), nn.Linear(32, num_classes))
