"""Mixup: interpolated points with interpolated labels, the control without a teacher."""

from typing import ClassVar

from pydantic import Field

from fskd.losses.targets import mixed_cross_entropy
from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    Phase,
    Reads,
    label_terms,
    methods,
)
from fskd.types import Batch, Outputs, Progress


class MixupSettings(MethodSettings):
    """Settings of mixup."""

    ce_weight: float = Field(1.0, ge=0)
    mixed_weight: float = Field(1.0, ge=0)


@methods.register("mixup")
class Mixup(Method):
    """Matches the labels of the real rows and interpolated labels of the generated rows.

    L = ce_weight*CE(s(x), y) + mixed_weight*sum_j w_j CE(s(x~), y_j)
    for x~ = sum_j w_j x_j. It sees the same points as ``kdplus``, with labels that are mixed
    instead of given by a teacher: the control that tells the two apart.

    Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018,
    arXiv 1710.09412. The paper trains on mixed rows only; here real rows are kept beside them
    (ce_weight 0 gives the paper's loss).
    """

    Settings = MixupSettings
    settings: MixupSettings
    default_generator: ClassVar[str | None] = "mixup"
    unit_terms = Method.unit_terms | {"mixed"}

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(reads=Reads(student=frozenset({"logits"}), generated=True)),)

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        terms = label_terms(students[0], batch)
        if batch.n_generated:
            if batch.mixed_targets is None or batch.mixed_weights is None:
                raise ValueError("method mixup needs a generator that mixes labelled rows")
            logits = students[0].logits[batch.n_real : batch.n_base]
            terms["mixed"] = mixed_cross_entropy(logits, batch.mixed_targets, batch.mixed_weights)
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": self.settings.ce_weight, "mixed": self.settings.mixed_weight}
