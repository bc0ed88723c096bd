"""KD: the teacher's softened class probabilities as soft targets."""

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


class KDSettings(MethodSettings):
    """Settings of KD."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


@methods.register("kd")
class KD(Method):
    """Matches the teacher's softened class probabilities, and the labels.

    L = ce_weight*CE(s(x), y) + kd_weight*T^2*KL(softmax(t/T) || softmax(s/T)), batch means.

    Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, NIPS Deep Learning
    Workshop 2014, arXiv 1503.02531. Defaults are those of the CRD benchmark (Tian et al., ICLR
    2020). Where a generator adds rows, they carry the teacher's soft targets with the same weight,
    0.1*CE(x) + 0.9*KD(x) + 0.9*KD(x~), as in Wang et al., NeurIPS 2022, arXiv 2012.02909;
    ``kdplus`` has a weight of its own for them.
    """

    Settings = KDSettings
    settings: KDSettings

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
        weight = self.settings.kd_weight
        return {"ce": self.settings.ce_weight, "kd": weight, "generated": weight}
