"""Function matching: the student follows the teacher on mixed images, for long, without labels."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods

ADAM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "grad_clip": 1.0}


@methods.register("funmatch")
class FunMatch(Method):
    """Matches the teacher's class probabilities on mixes of moved images; labels are not used.

    L = T^2 * KL(softmax(t(v)/T) || softmax(s(v)/T)) with one view v for both, an image moved at
    random and mixed with another, v = lambda*x_i + (1-lambda)*x_j, lambda ~ Beta(1, 1) per batch.

    Beyer et al., *Knowledge Distillation: A Good Teacher is Patient and Consistent*, CVPR 2022,
    arXiv 2106.05237; a preset of the objective, the mixup generator and the optimiser, the code's
    for flowers at medium length: Adam with decoupled decay (1e-4 of the weights a step at the peak,
    AdamW's 0.1), cosine with warm-up, gradient norms up to 1. Patience is the budget's: the paper
    takes 1e3 to 1e6 epochs. Differences: small affine moves, which suit any images, are added to
    those of the data set in place of crops of all sizes and flips; partners are a random
    permutation, not the neighbour, so it is one whether lambda or 1-lambda is a row's own share.
    """

    family = "mixing"

    class Settings(MethodSettings):
        """The objective's weights."""

        ce_weight: float = Field(0.0, ge=0)
        kd_weight: float = Field(1.0, ge=0)
        temperature: float = Field(1.0, gt=0)

    default_generator: ClassVar[str | None] = "mixup"
    defaults: ClassVar[Mapping[str, Any]] = {
        "generator": {"share": 1.0, "lam": "beta", "lam_per": "batch"},
        "data": {"augment": {"affine": 1.0}},
        "optim": {**ADAM, "schedule": "onecycle", "warmup": 0.1},
    }
