"""Knowledge Flow: the student leans on the teacher's layers, and ever less."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, cross_entropy, kl_divergence
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import LOGITS, Needs, Pass, Role, Term, Terms, student, teacher
from fskd.types import Shapes


def blend(sources: Sequence[Tensor], scores: Float[Tensor, " sources"]) -> Tensor:
    """Sum over q of softmax(scores)_q * source_q.

    Args:
        sources: Logits (rows, classes), the student's own first.
        scores: a, one of each source.
    """
    stacked = torch.stack([at_least_float32(one) for one in sources], 2)
    return (stacked * scores.softmax(0)).sum(2)


@methods.register("knowledge_flow")
class KnowledgeFlow(Method):
    """Learns labels on a blend of its own and the teacher's layers, until it stands alone.

    L = CE(z, y) + r*independence*(-log w_0) + steadiness*KL(z_before || z_s), with z = w_0 z_s +
    sum_q w_q M_q(h_q), w = softmax(a) in R^(1+n), h_q in R^C_q the teacher's stage q pooled over
    pixels, M_q linear C_q -> K, and r the share of training that is done. M and a are learned.

    Liu, Peng and Schwing, *Knowledge Flow: Improve Upon Your Teachers*, ICLR 2019, arXiv
    1904.05878. The paper blends at every layer; as a method here cannot feed networks with maps of
    its own making, only the last layer, the logits, is blended. One teacher with several layers
    stands for several teachers. The student before is its moving average. M and a start from
    torch's and equal scores. The weights of 1 and the linear rise are ours, not the paper's.
    The student alone is evaluated. Generated rows enter the KL only.
    """

    family = "features"

    class Settings(BareSettings):
        """Weights of the labels of the student alone, of leaving the teacher, and of the KL."""

        ce_weight: float = Field(0.0, ge=0)
        independence: float = Field(1.0, ge=0)
        steadiness: float = Field(1.0, ge=0)

    settings: Settings
    passes = student("logits"), teacher("stages"), Pass("before", "before", LOGITS)
    roles: Mapping[str, Role] = {"before": Role(weights="ema")}
    unit = frozenset({"flow"})
    needs = Needs(stages=1, labels=True)

    def build(self, shapes: Shapes) -> None:
        """A linear map of each of the teacher's stages, and a score of each source."""
        widths = [stage[0] for stage in shapes.known.stages]
        self.maps = nn.ModuleList(nn.Linear(width, shapes.num_classes) for width in widths)
        self.scores = nn.Parameter(torch.zeros(1 + len(widths)))

    def terms(self, step: Step) -> Terms:
        """Labels of the blend, leaving the teacher, and the student before."""
        own, ours, n = self.settings, step.student.logits, step.batch.n_real
        pooled = [at_least_float32(x.detach()).mean((2, 3)) for x in step.teacher.stages]
        steady = kl_divergence(ours, step["before"].logits, 1.0)
        found = {
            "independence": Term(
                -self.scores.log_softmax(0)[0], own.independence * step.progress.fraction
            ),
            "steadiness": Term(steady, own.steadiness),
        }
        if n:
            flows = [one(h) for one, h in zip(self.maps, pooled, strict=True)]
            mixed = blend([ours, *flows], self.scores)
            found["flow"] = Term(cross_entropy(mixed[:n], step.batch.targets), 1.0)
        return found
