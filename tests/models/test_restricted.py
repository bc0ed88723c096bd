"""A network restricted to some of its classes."""

import pytest
import torch

from fskd.models.catalog import build
from fskd.models.restricted import Restricted
from fskd.models.taps import FeatureNet
from fskd.types import TAPS

ALL = frozenset(TAPS)


def test_distribution_given_the_classes() -> None:
    torch.manual_seed(0)
    whole = FeatureNet(build("cnn_tiny", 10, 1)).eval()
    classes = torch.tensor([7, 0, 3])
    net, x = Restricted(whole, classes), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        probs, found = (f(x).logits.double().softmax(1).tolist() for f in (whole, net))
    for before, after in zip(probs, found, strict=True):
        kept = [before[c] for c in (7, 0, 3)]
        assert after == pytest.approx([p / sum(kept) for p in kept], rel=1e-5)


def test_other_taps_and_weights_are_the_same() -> None:
    whole = FeatureNet(build("cnn_tiny", 10, 1)).eval()
    net, x = Restricted(whole, torch.tensor([1, 4])), torch.rand(2, 1, 8, 8)
    ours, theirs = net(x, ALL), whole(x, ALL)
    assert torch.equal(ours.logits, theirs.logits[:, [1, 4]])
    assert torch.equal(ours.embedding, theirs.embedding)
    for name in ("stages", "pre"):
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert torch.equal(a, b)
    assert net(x, frozenset({"embedding"})).logits is None
    assert net.tap_shapes((1, 8, 8)).logits == (2,)
    assert net.net is whole.net
    assert len(list(net.parameters())) == len(list(whole.parameters()))
