"""A network of K classes as one of some of them."""

import torch
from torch import Tensor

from fskd.models.taps import LOGITS, FeatureNet
from fskd.types import Outputs


class Restricted(FeatureNet):
    """A network whose logits are those of some classes; all other taps are unchanged.

    A softmax over the remaining logits is the network's distribution given that the class is one
    of them.

    Args:
        whole: The network, shared and not copied.
        classes: Numbers of the classes to keep, in the order of the new ones, int64 (N,).
    """

    classes: Tensor

    def __init__(self, whole: FeatureNet, classes: Tensor) -> None:
        super().__init__(whole.net, getattr(whole, "names", ()))  # a section has none
        self.whole = whole
        device = next(whole.parameters(), torch.empty(0)).device
        self.register_buffer("classes", classes.to(device), persistent=False)

    def forward(self, x: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        """The taps in ``read``, logits (rows, N)."""
        out: Outputs = self.whole(x, read)
        if out.logits is None:
            return out
        return out._replace(logits=out.logits[:, self.classes])
