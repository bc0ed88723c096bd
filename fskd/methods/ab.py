"""AB: the student's neurons fire where the teacher's do, learned before the task."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import pool_to_match
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Phase, Term, Terms, student, teacher
from fskd.types import Shapes

SCALE = 3e-3


def boundary_costs(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    margin: float = 1.0,
) -> Float[Tensor, "batch channels height width"]:
    """(margin + s)_+^2 where the teacher is silent (t <= 0), (margin - s)_+^2 where it fires.

    Args:
        student: Maps before the activation.
        teacher: Maps before the activation, treated as constant; only their signs count.
        margin: How far from 0 the student has to be.
    """
    ours = at_least_float32(student)
    return (margin + torch.where(teacher.detach() > 0, -ours, ours)).relu().square()


def boundary_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    margin: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, ""]:
    """Sum over stages of 2^-(n-1-l) * ``boundary_costs``; the last stage counts most.

    Args:
        student: Maps of each stage behind its connector.
        teacher: The teacher's maps of the same shapes.
        margin: As in ``boundary_costs``.
        reduction: 3e-3 times the sum over elements / rows, or the mean over all elements.
    """
    pairs = zip(reversed(student), reversed(teacher), strict=True)
    costs = [boundary_costs(s, t, margin) for s, t in pairs]
    by = [one.mean() if reduction == "mean" else SCALE * one.sum() / len(one) for one in costs]
    return torch.stack([cost / 2**i for i, cost in enumerate(by)]).sum()


def connector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """1x1 convolution and batch normalisation; nothing where shapes (C, H, W) agree."""
    if student == teacher:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(student[0], teacher[0], 1), nn.BatchNorm2d(teacher[0]))


@methods.register("ab")
class AB(Method):
    """Matches the signs of the maps before the activation, with a margin, before the task.

    Phase ``ab`` (features and connectors): L = weight * 3e-3 * sum_l 2^-(n-1-l) * sum rho / B, with
    rho = (m + c(F_s))_+^2 where F_t <= 0 and (m - c(F_s))_+^2 elsewhere; c is a 1x1 convolution and
    batch normalisation, or nothing where shapes agree. Phase ``main``: L = ce_weight*CE +
    kd_weight*KD_T; the boundaries no longer enter.

    Heo, Lee, Yun and Choi, *Knowledge Transfer via Distillation of Activation Boundaries Formed by
    Hidden Neurons*, AAAI 2019, arXiv 1811.03233. The factor 3e-3, the stage weights and the lengths
    (30 and 240 epochs) are those of the CRD benchmark (Tian et al., ICLR 2020); the authors distil
    afterwards, which is ``kd_weight=1`` and ``temperature=3``. The sum over elements is published
    and the default; ``reduction=mean`` is the mean of a public re-implementation, which does not
    grow with the maps and has no 3e-3. Larger maps are pooled to the size of the other network's,
    where the benchmark chooses a convolution by size. In the first phase generated rows are used
    like real ones. With a single value per channel (one row of a 1x1 map) batch normalisation is
    undefined, and the term is left out.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight, margin, reduction, and length of the first phase relative to the main one."""

        weight: float = Field(1.0, ge=0)
        margin: float = Field(1.0, gt=0)
        reduction: Literal["sum", "mean"] = "sum"
        ab_share: float = Field(30 / 240, gt=0)

    settings: Settings
    needs = Needs(stages=1, equal_stages=True)

    @property
    def phases(self) -> Sequence[Phase]:
        """The boundaries, then the task."""
        first = Phase(
            name="ab",
            share=self.settings.ab_share,
            trains=("student.features", "method.connectors"),
            passes=(student("pre"), teacher("pre")),
            terms="boundaries",
            objective=frozenset(),
        )
        return first, Phase(trains=("student",))

    def build(self, shapes: Shapes) -> None:
        """A connector for each stage."""
        pairs = zip(shapes.student.pre, shapes.known.pre, strict=True)
        self.connectors = nn.ModuleList(connector(s, t) for s, t in pairs)

    def boundaries(self, step: Step) -> Terms:
        """The term of the first phase."""
        pairs = zip(step.student.pre, step.teacher.pre, strict=True)
        ours, theirs = zip(*(pool_to_match(s, t) for s, t in pairs), strict=True)
        found = list(zip(self.connectors, ours, strict=True))
        if any(s[:, 0].numel() < 2 and not isinstance(one, nn.Identity) for one, s in found):
            return {}
        own, guesses = self.settings, [one(s) for one, s in found]
        loss = boundary_loss(guesses, theirs, own.margin, own.reduction)
        return {"ab": Term(loss, own.weight)}
