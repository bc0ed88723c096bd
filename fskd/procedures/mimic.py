"""What MiR is, as all procedures have it: the loss of the last maps and its optimiser."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fskd.losses.targets import at_least_float32
from fskd.types import Outputs

# Of the authors' code of PRACTISE.
OPTIM: Mapping[str, Any] = {
    "lr": 0.02, "nesterov": False, "weight_decay": 1e-4,
    "schedule": "milestones", "milestones": [0.4, 0.8],
}  # fmt: skip


def mimic_loss(student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
    """Mean over all elements of (F_s - F_t)^2, F the last map before pooling.

    Args:
        student: With ``pre``; the last map is max(pre[-1], 0), (rows, C, H, W).
        teacher: The same, treated as constant.
    """
    ours, theirs = (at_least_float32(net.pre[-1].relu()) for net in (student, teacher))
    return F.mse_loss(ours, theirs.detach())
