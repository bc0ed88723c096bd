"""Internal representations, stage by stage from the bottom, then the teacher's soft targets."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Phase, Term, Terms, student, teacher
from fskd.types import Shapes

Order = Literal["stacked", "progressive", "together"]


def cosine_distance(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Mean over rows of 1 - cos(s, t).

    Args:
        student: Vectors.
        teacher: Vectors, treated as constant.
    """
    ours, goal = at_least_float32(student), at_least_float32(teacher.detach())
    return 1 - F.cosine_similarity(ours, goal, dim=1).mean()


def active(order: Order, n: int, fraction: float) -> list[float]:
    """Which of n stages count at this share of the phase, 1 or 0 each, shallow to deep."""
    now = min(int(fraction * n), n - 1)
    if order == "together":
        return [1.0] * n
    return [float(i == now or (i < now and order == "stacked")) for i in range(n)]


@methods.register("aguilar")
class Aguilar(Method):
    """Matches pooled stages by their cosine, from the bottom up, before the soft targets.

    Phase ``internal`` (features and linear maps): L = weight * sum_l a_l * mean (1 - cos(W_l h_s,l,
    h_t,l)), h the mean of a stage's map over pixels in R^C, W a linear map where widths differ. The
    phase is divided evenly among n stages: ``order=stacked`` adds them one after the other,
    ``progressive`` has one at a time, ``together`` all of them. Phase ``main``: L = ce_weight*CE +
    kd_weight*KD_T.

    Aguilar et al., *Knowledge Distillation from Internal Representations*, AAAI 2020, arXiv
    1910.03723, which is about transformers: pooled stages stand for its [CLS] vectors, and its
    divergence of attention heads has no counterpart in convolutions and is left out. The paper goes
    on when a layer's loss is low or after some epochs; here each has an equal share, and the phase
    is half as long as the main one, for which there is no published number. Stage maps of any
    size; generated rows are used like real ones in the first phase.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight, order of the stages, and length of the first phase relative to the main one."""

        kd_weight: float = Field(1.0, ge=0)
        weight: float = Field(1.0, ge=0)
        order: Order = "stacked"
        internal_share: float = Field(0.5, gt=0)

    settings: Settings
    needs = Needs(stages=1, equal_stages=True)

    @property
    def phases(self) -> Sequence[Phase]:
        """The stages, then the task."""
        first = Phase(
            name="internal",
            share=self.settings.internal_share,
            trains=("student.features", "method.maps"),
            passes=(student("stages"), teacher("stages")),
            terms="internal",
            objective=frozenset(),
        )
        return first, Phase(trains=("student",))

    def build(self, shapes: Shapes) -> None:
        """A linear map for each stage whose widths differ."""
        widths = zip(shapes.student.stages, shapes.known.stages, strict=True)
        self.maps = nn.ModuleList(
            nn.Identity() if s[0] == t[0] else nn.Linear(s[0], t[0], bias=False) for s, t in widths
        )

    def internal(self, step: Step) -> Terms:
        """The stages that count at this moment."""
        own, found = self.settings, []
        for one, s, t in zip(self.maps, step.student.stages, step.teacher.stages, strict=True):
            ours, theirs = (at_least_float32(x).mean((2, 3)) for x in (s, t))
            found.append(cosine_distance(one(ours), theirs))
        shares = active(own.order, len(found), step.progress.fraction)
        losses = [share * loss for share, loss in zip(shares, found, strict=True)]
        return {"internal": Term(torch.stack(losses).sum(), own.weight)}
