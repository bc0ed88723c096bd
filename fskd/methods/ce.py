"""CE: training on the labels alone, the baseline without a teacher."""

from pydantic import Field

from fskd.losses.targets import cross_entropy
from fskd.methods.base import Losses, Method, MethodSettings, Phase, Reads, methods
from fskd.types import Batch, Outputs, Progress


class CESettings(MethodSettings):
    """Settings of CE."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)


@methods.register("ce")
class CE(Method):
    """Matches the labels only; the baseline without a teacher, optionally with label smoothing.

    L = CE(s(x), y), with the target 1-e on the label and e/(K-1) on the other classes for
    e = label_smoothing.

    Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016, arXiv
    1512.00567. As in Yuan et al., CVPR 2020, arXiv 1909.11723, e is spread over the K-1 wrong
    classes, not over all K.
    """

    Settings = CESettings
    settings: CESettings

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(reads=Reads(student=frozenset({"logits"}))),)

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        if batch.n_real == 0:
            return {}
        logits = students[0].logits[: batch.n_real]
        return {"ce": cross_entropy(logits, batch.targets, self.settings.label_smoothing)}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": 1.0}
