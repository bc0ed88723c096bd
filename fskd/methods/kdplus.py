"""KD+: distillation on the training points and on points interpolated between them."""

from typing import ClassVar

from pydantic import Field

from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    Phase,
    Reads,
    logit_terms,
    methods,
)
from fskd.types import Batch, Outputs, Progress


class KDPlusSettings(MethodSettings):
    """Settings of KD+."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    generated_weight: float = Field(1.0, ge=0)


@methods.register("kdplus")
class KDPlus(Method):
    """KD plus teacher-labelled points interpolated between two samples.

    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)) + generated_weight*KD_T(s(x~), t(x~))
    with x~ = lambda*x_i + (1-lambda)*x_j. The interpolated points carry the teacher's soft targets
    only, taken from its output at x~; labels are never mixed.

    Deng and Zhang, *Can Students Outperform Teachers in Knowledge Distillation based Model
    Compression?*, ICLR 2021 submission (OpenReview XZDeL25T12l). The paper's lambda distribution,
    pair rule and weights are not public; the defaults (lambda uniform per sample, any pair, weights
    0.1, 0.9 and 1, T = 4, one joint forward of real and mixed rows) are ours. Without a generator
    this is exactly ``kd``.
    """

    Settings = KDPlusSettings
    settings: KDPlusSettings
    default_generator: ClassVar[str | None] = "mixup"

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        logits = frozenset({"logits"})
        return (Phase(reads=Reads(student=logits, teacher=logits, generated=True)),)

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        weights = self.weights(progress)
        return logit_terms(students[0], teacher, batch, self.settings.temperature, weights)

    def weights(self, progress: Progress) -> dict[str, float]:
        settings = self.settings
        return {
            "ce": settings.ce_weight,
            "kd": settings.kd_weight,
            "generated": settings.generated_weight,
        }
