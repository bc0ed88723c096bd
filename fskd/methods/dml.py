"""DML: students that learn together and from each other."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

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


class DMLSettings(MethodSettings):
    """Settings of DML."""

    n_students: int = Field(2, ge=2)
    ce_weight: float = Field(1.0, ge=0)
    mutual_weight: float = Field(1.0, ge=0)


def mutual_loss(logits: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over students i of the mean over peers j of KL(p_j || p_i), at temperature 1.

    Args:
        logits: Logits (rows, classes) of each student, at least two. Peers are constants: the
            gradient of student i's share reaches its own logits only.

    Returns:
        The sum in nats, averaged over rows.
    """
    n = len(logits)
    terms = [
        kl_divergence(logits[i], logits[j], 1.0) / (n - 1)
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return sum(terms[1:], terms[0])


@methods.register("dml")
class DML(Method):
    """Matches the class probabilities of peers: students trained together, without a teacher.

    L = ce_weight * sum_i CE(s_i, y) + mutual_weight * sum_i 1/(n-1) sum_j KL(p_j || p_i), T = 1.

    Zhang, Xiang, Hospedales and Lu, *Deep Mutual Learning*, CVPR 2018, arXiv 1706.00384. Students
    are updated together, not in turn. Both terms are sums over students, and both enter the divisor
    of the total, so each student follows half of its published loss. Generated rows enter the
    mutual term only.
    """

    Settings = DMLSettings
    settings: DMLSettings
    unit_terms = Method.unit_terms | {"mutual"}

    @classmethod
    def students_needed(cls, settings: MethodSettings) -> int:
        """The setting ``n_students``."""
        return cast(DMLSettings, settings).n_students

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
        terms: Losses = {}
        for student in students:
            for name, value in label_terms(student, batch).items():
                terms[name] = terms[name] + value if name in terms else value
        terms["mutual"] = mutual_loss([student.logits[: batch.n_base] for student in students])
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": self.settings.ce_weight, "mutual": self.settings.mutual_weight}
