"""ONE: branches of one network that learn from their own gated ensemble."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, cross_entropy
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import LOGITS, Needs, Pass, Role, Term, Terms, student
from fskd.types import Shapes


def ensemble(
    logits: Sequence[Tensor], shares: Float[Tensor, "batch branches"]
) -> Float[Tensor, "batch classes"]:
    """Weighted sum of the branches' logits in each row.

    Args:
        logits: Logits (rows, classes) of each branch.
        shares: Of each branch, rows sum to 1.
    """
    stacked = torch.stack([at_least_float32(one) for one in logits], 1)
    return (shares.unsqueeze(2) * stacked).sum(1)


def ensemble_divergence(
    logits: Sequence[Tensor],
    ensemble: Float[Tensor, "batch classes"],
    temperature: float = 3.0,
    eps: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum over branches i of T^2 * KL(softmax(z_e/T) + eps || softmax(z_i/T)), mean over rows.

    Args:
        logits: Logits (rows, classes) of each branch.
        ensemble: Logits, constant.
        temperature: T > 0.
        eps: Added to the soft targets, which then sum to more than 1.
    """
    p = F.softmax(at_least_float32(ensemble.detach()) / temperature, dim=1) + eps
    log_q = [F.log_softmax(at_least_float32(one) / temperature, dim=1) for one in logits]
    found = [F.kl_div(one, p, reduction="batchmean") for one in log_q]
    return torch.stack(found).sum() * temperature**2


def ramp_up(fraction: float, ramp: float) -> float:
    """From exp(-5) at the beginning to 1 when a share ``ramp`` of training is over.

    Example:
        >>> [round(ramp_up(x, 0.5), 4) for x in (0.0, 0.25, 0.5, 1.0)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    return math.exp(-5 * (1 - min(fraction / ramp, 1)) ** 2)


def make_gate(channels: int, branches: int) -> nn.Sequential:
    """The pooled trunk -> how much each branch counts: linear, batch norm, ReLU, softmax.

    Args:
        channels: Of the trunk's map.
        branches: How many.
    """
    linear, norm = nn.Linear(channels, branches), nn.BatchNorm1d(branches)
    return nn.Sequential(linear, norm, nn.ReLU(), nn.Softmax(dim=1))


@methods.register("one")
class ONE(Method):
    """Matches the gated ensemble of branches of the student, which share all but the last stage.

    L = ce_weight * sum_i CE(z_i, y) + ensemble_weight * CE(z_e, y) + w * sum_i KD_3(z_i, z_e) with
    z_e = sum_i g_i z_i, g = softmax(relu(BN(linear(pooled trunk)))) and
    w = consistency_weight * exp(-5 (1 - min(done/ramp, 1))^2). Branch 0 is the student itself, the
    others are thrown away after training; no teacher.

    Lan, Zhu and Gong, *Knowledge Distillation by On-the-Fly Native Ensemble*, NeurIPS 2018, arXiv
    1806.04606; ramp of the authors' code, 80 of 300 epochs. The ensemble is a constant in KD, so
    the gate learns from CE(z_e) only. The code adds 1e-7 to the soft targets; here KD is exact.
    All terms enter the divisor of the total. Generated rows enter KD only. One row leaves the
    gate's batch norm nothing to normalise by, and own terms are left out.
    """

    family = "online"

    class Settings(BareSettings):
        """Branches, weights, and the share of training in which KD's weight rises."""

        n_branches: int = Field(3, ge=2)
        ce_weight: float = Field(1.0, ge=0)
        ensemble_weight: float = Field(1.0, ge=0)
        consistency_weight: float = Field(1.0, ge=0)
        temperature: float = Field(3.0, gt=0)
        ramp: float = Field(80 / 300, gt=0)

    settings: Settings
    unit = frozenset({"one_ce", "one_kd"})
    needs = Needs(stages=2, min_rows=2)

    @property
    def roles(self) -> Mapping[str, Role]:
        """The further branches."""
        return {f"branch{i}": Role(after=-2) for i in range(1, self.settings.n_branches)}

    @property
    def labelled(self) -> Sequence[str]:
        """All branches."""
        return "student", *self.roles

    @property
    def passes(self) -> Sequence[Pass]:
        """The student, and the further branches on its trunk."""
        fed = [Pass(name, name, LOGITS, "student.stages.-2") for name in self.roles]
        return student("logits", "stages"), *fed

    def build(self, shapes: Shapes) -> None:
        """The gate."""
        self.gate = make_gate(shapes.student.stages[-2][0], self.settings.n_branches)

    def together(self, step: Step) -> tuple[list[Tensor], Tensor]:
        """Logits of each branch, and of the ensemble."""
        logits = [step[name].logits for name in self.labelled]
        trunk = at_least_float32(step.student.stages[-2]).mean((2, 3))
        return logits, ensemble(logits, self.gate(trunk))

    def terms(self, step: Step) -> Terms:
        """The ensemble's labels, and its soft targets."""
        own, (logits, joint) = self.settings, self.together(step)
        kd = ensemble_divergence(logits, joint, own.temperature)
        weight = own.consistency_weight * ramp_up(step.progress.fraction, own.ramp)
        found = {"one_kd": Term(kd, weight)}
        if n := step.batch.n_real:
            ce = cross_entropy(joint[:n], step.batch.targets)
            found["one_ce"] = Term(ce, own.ensemble_weight)
        return found

    def measured(self, step: Step) -> Mapping[str, Tensor]:
        """The ensemble, and the further branches."""
        logits, joint = self.together(step)
        return {"ensemble": joint, **dict(zip(self.roles, logits[1:], strict=True))}
