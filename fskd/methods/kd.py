"""KD: the teacher's softened class probabilities as soft targets."""

from pydantic import Field

from fskd.losses.targets import kl_divergence
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
    2020). Where a generator adds rows, ``kd`` is the mean over real and generated rows together,
    as if the generated rows were more training points; ``kdplus`` weighs the two apart.
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
        base = slice(0, batch.n_base)
        kd = kl_divergence(
            students[0].logits[base], teacher.logits[base], self.settings.temperature
        )
        return label_terms(students[0], batch) | {"kd": kd}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": self.settings.ce_weight, "kd": self.settings.kd_weight}
