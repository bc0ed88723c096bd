"""Several networks as one teacher, whose distribution is the mean of theirs."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.methods.words import LOGITS
from fskd.models.restricted import Restricted
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Source
from fskd.types import Outputs, TapShapes


class Ensemble(Source):
    """Networks of which each can be asked (``members``), and their mean.

    The logits are the log of the mean of the members' softmaxes. A distribution's logits are known
    up to a constant per row, which softmax takes no notice of; at temperature T they soften the
    mean, and are not the mean of what is softened. Taps other than logits are those of each member
    only.

    Args:
        nets: The networks, of equal classes.
    """

    kind = "an ensemble"

    def __init__(self, nets: Sequence[FeatureNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    @property
    def members(self) -> Sequence[FeatureNet]:
        """The networks."""
        return tuple(cast(FeatureNet, net) for net in self.nets)

    def forward(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        """Logits (rows, K), float32, for images (rows, C, H, W)."""
        if taps - self.offers:
            raise SettingError("teacher", self.kind, "one network, whose features can be read")
        return Outputs(logits=mean_logits([net(inputs, LOGITS).logits for net in self.members]))

    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        """Shapes of the first member's taps; all members must have those that are read."""
        first, *_ = [net.tap_shapes(size, read) for net in self.members]
        return first

    def restricted(self, classes: Tensor) -> "Ensemble":
        """The ensemble of the restricted members."""
        return Ensemble([Restricted(net, classes) for net in self.members])


def mean_logits(several: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the softmaxes of several logits (rows, K), float32.

    Example:
        >>> mean_logits([torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])]).exp()
        tensor([[0.7500, 0.2500]])
    """
    logs = torch.stack([F.log_softmax(logits.float(), 1) for logits in several])
    return logs.logsumexp(0) - math.log(len(several))
