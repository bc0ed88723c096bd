"""Which of several outputs of a network its logits are."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.taps import FeatureNet


class Several(nn.Module):
    """Returns its logits among other things."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        x = x.flatten(1)
        return self.wrap(x, self.fc(x))


@pytest.mark.parametrize(
    ("wrap", "which"),
    [
        (lambda x, y: (x, y), 1),
        (lambda x, y: [x, y], -1),
        (lambda x, y: {"aux": x, "out": y}, "out"),
        (lambda x, y: {"aux": x, "logits": y}, None),
        (lambda x, y: SimpleNamespace(loss=x, logits=y), None),
        (lambda x, y: SimpleNamespace(main=y), "main"),
        (lambda x, y: y, 0),
    ],
)
@pytest.mark.parametrize("taps", [(), ("fc",)])
def test_logits_among_several_outputs(wrap, which, taps):
    net, x = FeatureNet(Several(wrap), taps, which), torch.randn(2, 3, 2, 2)
    assert torch.equal(net(x).logits, net.net.fc(x.flatten(1)))
    if taps:
        out = net(x, frozenset({"logits", "stages"}))
        assert torch.equal(out.stages[0][:, :, 0, 0], out.logits)


@pytest.mark.parametrize(
    ("wrap", "which", "says"),
    [
        (lambda x, y: (x, y), None, r"a tuple of 2 tensors \(2x12\), \(2x5\)\)"),
        (lambda x, y: (x, y), 2, "a tuple of 2"),
        (lambda x, y: (x, None), 1, r"a tuple of 2 \(2x12\), NoneType"),
        (lambda x, y: {"out": y}, None, r"a dict of 1 tensors out \(2x5\)"),
        (lambda x, y: {"out": y}, 0, "a dict"),
        (lambda x, y: None, None, "a NoneType"),
    ],
)
def test_which_output_must_be_said(wrap, which, says):
    with pytest.raises(SettingError, match=f"'Several'.*{says}.*logits=") as caught:
        FeatureNet(Several(wrap), logits=which)(torch.randn(2, 3, 2, 2))
    assert "\n" not in str(caught.value)


def test_other_taps_of_several_outputs_need_names():
    net = FeatureNet(Several(lambda x, y: (x, y)), logits=1)
    with pytest.raises(SettingError, match=r"embedding cannot be read.*student\.taps"):
        net(torch.randn(2, 3, 2, 2), frozenset({"embedding"}))
