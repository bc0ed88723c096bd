"""A look at a network before it is used."""

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.taps import FeatureNet
from fskd.runs.networks import check_network
from fskd.types import DataSplits, ImageSet


def splits() -> DataSplits:
    one = ImageSet(
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), tuple("abcd"),
        (0.0,) * 3, (1.0,) * 3, "none", (3, 8, 8),
    )  # fmt: skip
    return DataSplits(one, one)


def linear(width: int = 3 * 64, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(width, classes))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = linear()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


def test_modes_stay_and_notes_are_given():
    net = FeatureNet(linear().half())
    net.net[1].eval()
    assert check_network(net, splits(), "student") == ["parameters cast from float16 to float32"]
    assert net.training
    assert not net.net[1].training


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (linear(7), r"^student: Sequential .*takes 3x8x8 images \(mat1 and mat2"),
        (linear(classes=3), r"^student: a network with output \(3,\).*expected 4 classes"),
        (nn.Flatten(), "^student: Flatten .*with parameters"),
        (Pair(), r"^student: 'Pair' \(its forward pass returns a tuple of 2 tensors \(2x4\),"),
    ],
)
def test_what_does_not_fit(net, says):
    net.train()
    with pytest.raises(SettingError, match=says) as caught:
        check_network(FeatureNet(net), splits(), "student")
    assert "\n" not in str(caught.value)
    assert all(module.training for module in net.modules())


def test_only_what_is_trained_must_be_trainable():
    net = FeatureNet(linear().requires_grad_(False))
    assert check_network(net, splits(), "teacher") == []
    assert check_network(net, splits(), "student", trains=False) == []
    with pytest.raises(SettingError, match="parameters to train"):
        check_network(net, splits(), "teacher", trains=True)
