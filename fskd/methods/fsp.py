"""FSP: the flow between neighbouring stages, learned before the task."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import fsp_matrix
from fskd.methods.base import Method, MethodSettings, Step, methods, require
from fskd.methods.words import Needs, Phase, Term, Terms, student, teacher
from fskd.types import Shapes


def flow_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over neighbouring stages of the mean squared difference of FSP matrices.

    Args:
        student: Maps (rows, C_l, H_l, W_l) of each stage, at least two.
        teacher: Maps with the same channels; sizes may differ. Treated as constant.
    """
    terms = []
    for i in range(len(student) - 1):
        goal = fsp_matrix(teacher[i].detach(), teacher[i + 1].detach())
        terms.append(F.mse_loss(fsp_matrix(student[i], student[i + 1]), goal))
    return sum(terms[1:], terms[0])


@methods.register("fsp")
class FSP(Method):
    """Matches the flow between neighbouring stages (FSP matrices) before learning the task.

    Phase ``fsp`` (features only): L = weight * sum_l mean (G_s,l - G_t,l)^2 with
    G_l[i, j] = mean over pixels of F_l,i * F_l+1,j, from the stem to the last stage. Phase
    ``main``: L = ce_weight*CE + kd_weight*KD_T; the flow no longer enters.

    Yim, Joo, Bae and Kim, *A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning*, CVPR 2017. Lengths as in the CRD benchmark (30 and 240
    epochs). Stages of student and teacher need equal widths. In the first phase generated rows are
    used like real ones.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight of the flow and length of its phase relative to the main one."""

        weight: float = Field(1.0, ge=0)
        fsp_share: float = Field(30 / 240, gt=0)

    settings: Settings
    needs = Needs(stages=1, equal_channels=True)

    @property
    def phases(self) -> Sequence[Phase]:
        """The flow, then the task."""
        flow = Phase(
            name="fsp",
            share=self.settings.fsp_share,
            trains=("student.features",),
            passes=(student("stem", "stages"), teacher("stem", "stages")),
            terms="flow",
            objective=frozenset(),
        )
        return flow, Phase()

    def build(self, shapes: Shapes) -> None:
        """Nothing; looks whether there are two maps to flow between."""
        alone = len(shapes.known.stages) == 1 and not (shapes.student.stem and shapes.known.stem)
        require(not alone, "fsp", "one stage and no stem", "two maps or more")

    def flow(self, step: Step) -> Terms:
        """The term of the first phase."""
        maps = [(net.stem, *net.stages) for net in (step.student, step.teacher)]
        if any(stem is None for stem, *_ in maps):  # of a network with taps by name
            maps = [net.stages for net in (step.student, step.teacher)]
        return {"fsp": Term(flow_loss(*maps), self.settings.weight)}
