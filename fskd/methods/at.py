"""AT: the student looks where the teacher looks."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import attention_map, pool_to_match
from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    Phase,
    TaskSettings,
    methods,
    require,
    task_reads,
    task_terms,
    task_weights,
)
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes


class ATSettings(TaskSettings):
    """Settings of AT."""

    weight: float = Field(1000.0, ge=0)
    power: float = Field(2.0, ge=1)


def attention_transfer(
    student: Sequence[Tensor], teacher: Sequence[Tensor], power: float = 2.0
) -> Float[Tensor, ""]:
    """Sum over stages of the mean squared difference of attention maps.

    Args:
        student: Maps (rows, C_l, H_l, W_l) of each stage.
        teacher: Maps of the same stages; channels and sizes may differ. Treated as constant.
        power: Exponent of the activations, at least 1.

    Returns:
        sum_l mean over rows and pixels of (a(F_s) - a(F_t))^2, where the larger map of a stage is
        pooled to the smaller first.
    """
    terms = []
    for maps_s, maps_t in zip(student, teacher, strict=True):
        pooled_s, pooled_t = pool_to_match(maps_s, maps_t.detach())
        terms.append(F.mse_loss(attention_map(pooled_s, power), attention_map(pooled_t, power)))
    return sum(terms[1:], terms[0])


@methods.register("at")
class AT(Method):
    """Matches attention maps, the channel mean of the squared activations, at every stage.

    L = ce_weight*CE + weight * sum_l mean (a(F_s,l) - a(F_t,l))^2 + kd_weight*KD_T, where
    a(F) = v / norm(v), v = mean_c abs(F_c)^power, for all stages but the stem.

    Zagoruyko and Komodakis, *Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer*, ICLR 2017, arXiv 1612.03928. As in the
    authors' code the squared difference is averaged over rows and pixels (the paper sums unsquared
    norms), which is what the weight of 1000 belongs to. Generated rows are used like real ones.
    """

    Settings = ATSettings
    settings: ATSettings

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__(settings, shapes)
        n_student = len(shapes.students[0].stages)
        n_teacher = len(cast(TapShapes, shapes.teacher).stages)
        require(
            n_student == n_teacher and n_student > 1,
            "at",
            f"a student with {n_student} stages and a teacher with {n_teacher}",
            "equal numbers of at least 2 (the stem and one more)",
        )

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(reads=task_reads(settings, "stages", "stages")),)

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        student, base = students[0], slice(0, batch.n_base)
        terms = task_terms(self.settings, student, teacher, batch)
        terms["at"] = attention_transfer(
            [maps[base] for maps in student.stages[1:]],
            [maps[base] for maps in teacher.stages[1:]],
            self.settings.power,
        )
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**task_weights(self.settings), "at": self.settings.weight}
