"""DML: students that learn together and from each other."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import kl_divergence
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Pass, Role, Term, Terms


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

    family = "online"

    class Settings(BareSettings):
        """Number of students and weights."""

        n_students: int = Field(2, ge=2)
        ce_weight: float = Field(1.0, ge=0)
        mutual_weight: float = Field(1.0, ge=0)

    settings: Settings
    unit = frozenset({"mutual"})

    @property
    def roles(self) -> Mapping[str, Role]:
        """The peers."""
        return {f"peer{i}": Role(peer=True) for i in range(1, self.settings.n_students)}

    @property
    def labelled(self) -> Sequence[str]:
        """All students."""
        return "student", *self.roles

    @property
    def passes(self) -> Sequence[Pass]:
        """Logits of all students."""
        return [Pass(name, name, frozenset({"logits"})) for name in self.labelled]

    def terms(self, step: Step) -> Terms:
        """The mutual term."""
        loss = mutual_loss([step[name].logits for name in self.labelled])
        return {"mutual": Term(loss, self.settings.mutual_weight)}
