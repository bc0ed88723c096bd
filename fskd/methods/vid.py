"""VID: the student predicts the teacher's maps, and how sure it is of every channel."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import pool_to_match
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.types import Shapes

LEAST_VARIANCE, FIRST_VARIANCE = 1e-5, 5.0


def gaussian_loss(
    mean: Float[Tensor, "batch channels height width"],
    goal: Float[Tensor, "batch channels height width"],
    rho: Float[Tensor, " channels"],
) -> Float[Tensor, ""]:
    """Mean over all elements of ((mean - goal)^2 / var + log var) / 2, var = softplus(rho) + 1e-5.

    The negative log-likelihood of a Gaussian without its constant; negative where var is small.

    Args:
        mean: Predicted maps.
        goal: Teacher maps, treated as constant.
        rho: Variance of each channel before softplus, which no value overflows.
    """
    variance = (F.softplus(at_least_float32(rho)) + LEAST_VARIANCE)[:, None, None]
    squares = (at_least_float32(mean) - at_least_float32(goal.detach())).square()
    return (squares / variance + variance.log()).mean() / 2


class Regressor(nn.Module):
    """Mean and variance of the teacher's maps: three 1x1 convolutions, a parameter per channel.

    Args:
        c_s: Channels of the student's map.
        c_t: Channels of the teacher's map.
    """

    def __init__(self, c_s: int, c_t: int) -> None:
        super().__init__()
        first, *others = (nn.Conv2d(c, c_t, 1, bias=False) for c in (c_s, c_t, c_t))
        self.mean = nn.Sequential(first, nn.ReLU(), others[0], nn.ReLU(), others[1])
        rho = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))
        self.rho = nn.Parameter(torch.full((c_t,), rho))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one stage; the larger map is pooled to the smaller first."""
        ours, theirs = pool_to_match(student, teacher)
        return gaussian_loss(self.mean(ours), theirs, self.rho)


@methods.register("vid")
class VID(Method):
    """Predicts the teacher's maps by a Gaussian with a learned variance per channel, at each stage.

    L = ce_weight*CE + weight * sum_l mean [(mu_l(F_s,l) - F_t,l)^2 / var_l + log var_l] / 2 +
    kd_weight*KD_T, where mu is three 1x1 convolutions and var = softplus(rho) + 1e-5, at first 5.

    Ahn et al., *Variational Information Distillation for Knowledge Transfer*, CVPR 2019, arXiv
    1904.05835; form and weight as in the CRD benchmark (Tian et al., ICLR 2020). Both mu and rho
    are trained with the student. The term may become negative, as a log-likelihood does. Generated
    rows are used like real ones.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight of the sum over stages."""

        weight: float = Field(1.0, ge=0)

    settings: Settings
    passes = student("stages"), teacher("stages")
    needs = Needs(equal_stages=True)

    def build(self, shapes: Shapes) -> None:
        """A regressor for each stage."""
        widths = zip(shapes.student.stages, shapes.known.stages, strict=True)
        self.stages = nn.ModuleList(Regressor(s[0], t[0]) for s, t in widths)

    def terms(self, step: Step) -> Terms:
        """The sum over stages."""
        maps = zip(self.stages, step.student.stages, step.teacher.stages, strict=True)
        loss = torch.stack([stage(s, t) for stage, s, t in maps]).sum()
        return {"vid": Term(loss, self.settings.weight)}
