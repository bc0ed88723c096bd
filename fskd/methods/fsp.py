"""FSP: the flow between neighbouring stages, learned before the task."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import fsp_matrix
from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    Phase,
    Reads,
    TaskSettings,
    methods,
    require,
    task_terms,
    task_weights,
)
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes


class FSPSettings(TaskSettings):
    """Settings of FSP; ``fsp_share`` is the length of the first phase relative to the second."""

    weight: float = Field(1.0, ge=0)
    fsp_share: float = Field(30 / 240, gt=0)


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

    Settings = FSPSettings
    settings: FSPSettings

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__(settings, shapes)
        student = [stage[0] for stage in shapes.students[0].stages]
        teacher = [stage[0] for stage in cast(TapShapes, shapes.teacher).stages]
        require(
            student == teacher and len(student) > 1,
            "fsp",
            f"a student with stages of {student} channels and a teacher with {teacher}",
            "equal channels in at least two stages",
        )

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        own = cast(FSPSettings, settings)
        logits, stages = frozenset({"logits"}), frozenset({"stages"})
        with_kd = own.kd_weight > 0
        teacher = logits if with_kd else frozenset[str]()
        return (
            Phase(
                name="fsp",
                share=own.fsp_share,
                trains=("students.features",),
                reads=Reads(student=stages, teacher=stages, generated=True),
            ),
            Phase(reads=Reads(student=logits, teacher=teacher, generated=with_kd)),
        )

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        student = students[0]
        if progress.phase == "fsp":
            base = slice(0, batch.n_base)
            return {
                "fsp": flow_loss(
                    [maps[base] for maps in student.stages],
                    [maps[base] for maps in teacher.stages],
                )
            }
        return task_terms(self.settings, student, teacher, batch)

    def weights(self, progress: Progress) -> dict[str, float]:
        if progress.phase == "fsp":
            return {"fsp": self.settings.weight}
        return task_weights(self.settings)
