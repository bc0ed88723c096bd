"""SP: rows that excite the teacher alike shall excite the student alike."""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.similarities import gram, unit_rows
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


def similarities(maps: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch batch"]:
    """Products of all pairs of flattened maps, each row of the matrix scaled to unit L2 norm.

    Args:
        maps: Maps or vectors. A common factor changes nothing and is taken out first.
    """
    vectors = at_least_float32(maps).flatten(1)
    scale = vectors.detach().norm(dim=1).amax()
    return unit_rows(gram(vectors / scale.clamp(min=1e-12)))


def similarity_loss(
    student: Float[Tensor, "batch ..."], teacher: Float[Tensor, "batch ..."]
) -> Float[Tensor, ""]:
    """Squared Frobenius norm of the difference of both matrices, divided by rows^2.

    Args:
        student: Maps (rows, ...).
        teacher: Maps of the same rows, of any shape. Treated as constant.
    """
    return F.mse_loss(similarities(student), similarities(teacher.detach()))


@methods.register("sp")
class SP(Method):
    """Matches which rows of a batch are similar, by the maps of the last stage.

    L = ce_weight*CE + weight * norm_F(G_s - G_t)^2 / B^2 + kd_weight*KD_T, where G is X X^T of the
    flattened maps X (B, C*H*W) with each row divided by its L2 norm; G is (B, B), so channels and
    sizes may differ.

    Tung and Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019, arXiv 1907.09682;
    stage and weight as in the CRD benchmark (Tian et al., ICLR 2020). The paper allows several
    pairs of stages; here it is the last, as in its CIFAR experiments. A row of G below 1e-6 of the
    largest is 0. Generated rows are used like real ones; with one row the term is left out.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Weight of the similarities."""

        weight: float = Field(3000.0, ge=0)

    settings: Settings
    passes = student("stages"), teacher("stages")
    needs = Needs(stages=1, min_rows=2)

    def terms(self, step: Step) -> Terms:
        """The similarities."""
        loss = similarity_loss(step.student.stages[-1], step.teacher.stages[-1])
        return {"sp": Term(loss, self.settings.weight)}
