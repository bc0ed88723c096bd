"""BAN: students that are born again, each taught by the one before it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from fskd.methods.base import MethodSettings, methods
from fskd.procedures.base import Procedure


@methods.register("ban")
class BAN(Procedure):
    """A student taught by an equal one that was taught by the teacher; their ensemble is measured.

    Generation g: L = ce_weight*CE(s(x), y) + kd_weight*T^2*KL(softmax(t/T) || softmax(s/T)), batch
    means over rows (B, K), where t are the logits of generation g-1, or of the teacher for the
    first. Each starts afresh and makes the updates of the run. ``ensemble`` is the mean of the
    softmaxes of all generations.

    Furlanello, Lipton, Tschannen, Itti and Anandkumar, *Born Again Neural Networks*, ICML 2018,
    arXiv 1805.04770. Differences: there, the teacher is the first generation and has the student's
    architecture, which is the case here with equal names; its dark-knowledge variants (CWTM, DKPP)
    are left out. The earlier generations' updates come on top of the student's.
    """

    class Settings(MethodSettings):
        """Generations, and the objective of each."""

        ce_weight: float = Field(1.0, ge=0)
        kd_weight: float = Field(1.0, gt=0)
        temperature: float = Field(1.0, gt=0)
        generations: int = Field(2, ge=1, description="Students, the last one included.")

    settings: Settings
    family = "chains"
    ensemble = True

    @property
    def hop(self) -> Mapping[str, Any]:
        """KD with the same weights and temperature."""
        return {"name": "kd", **self.settings.model_dump(exclude={"generations"})}

    def links(self, teacher: str, student: str) -> Sequence[str]:
        """The generations before the student's."""
        return (student,) * (self.settings.generations - 1)
