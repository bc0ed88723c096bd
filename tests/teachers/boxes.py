"""Functions that tests name as teachers."""

from typing import Any

import torch
from torch import Tensor, nn

from fskd.models.catalog import build

SEEN: list[Tensor] = []


def ask(images: Tensor) -> Tensor:
    """Ten classes, told from the first pixels; remembers what it was shown."""
    SEEN.append(images)
    return torch.softmax(images.flatten(1)[:, 10:20] * 3, 1)


def as_lists(images: Tensor) -> list[list[float]]:
    return ask(images).tolist()


def as_array(images: Tensor) -> Any:
    return ask(images).numpy()


def logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, 10:20] * 5 + 1


def negative(images: Tensor) -> Tensor:
    return logits(images) - 3


def infinite(images: Tensor) -> Tensor:
    return logits(images) / 0


def too_few(images: Tensor) -> Tensor:
    return torch.full((len(images), 9), 1 / 9)


def nothing(images: Tensor) -> None:
    """Gives nothing."""


def fails(images: Tensor) -> Tensor:
    raise OSError("the service is away")


def two_inputs(images: Tensor, others: Tensor) -> Tensor:
    return images


def no_input() -> None:
    """Takes nothing."""


def builds(num_classes: int, in_channels: int = 1) -> nn.Module:
    return build("cnn_tiny", num_classes, in_channels)


def builds_anyhow(**settings: Any) -> nn.Module:
    return build("cnn_tiny", settings["num_classes"], 1)
