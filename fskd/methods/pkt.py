"""PKT: how likely each row is another's neighbour, as a distribution."""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.similarities import gram, unit_rows
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher

EPS = 1e-7


def neighbours(
    embeddings: Float[Tensor, "batch dim"], diagonal: bool = True
) -> Float[Tensor, "batch batch"]:
    """(cos + 1)/2 of all pairs of rows, each row of the matrix scaled to sum 1.

    Args:
        embeddings: One vector per row; 1e-7 is added to their norms.
        diagonal: Whether a row is a neighbour of itself.
    """
    kernel = (gram(unit_rows(embeddings, EPS)) + 1) / 2
    if not diagonal:
        kernel = kernel - kernel.diag().diag()
    kernel = kernel.clamp(min=0)
    return kernel / kernel.sum(1, keepdim=True).clamp(min=EPS)


def transfer_loss(
    student: Float[Tensor, "batch dim_s"],
    teacher: Float[Tensor, "batch dim_t"],
    diagonal: bool = True,
) -> Float[Tensor, ""]:
    """Mean over all pairs of p_t * log((p_t + 1e-7) / (p_s + 1e-7)).

    Args:
        student: Embeddings.
        teacher: Embeddings of the same rows, treated as constant.
        diagonal: Whether pairs of a row with itself count.
    """
    p = neighbours(teacher.detach(), diagonal)
    q = neighbours(student, diagonal)
    return (p * ((p + EPS).log() - (q + EPS).log())).mean()


@methods.register("pkt")
class PKT(Method):
    """Matches the distribution of every row's neighbours in the batch.

    L = ce_weight*CE + weight * mean_ij p_t,ij log((p_t,ij + e) / (p_s,ij + e)) + kd_weight*KD_T,
    with p_ij = k_ij / sum_j k_ij, k_ij = (cos(e_i, e_j) + 1)/2 on embeddings (B, D), e = 1e-7.

    Passalis and Tefas, *Learning Deep Representations with Probabilistic Knowledge Transfer*, ECCV
    2018, arXiv 1803.10837. As in the authors' code and the CRD benchmark (Tian et al., ICLR 2020),
    whose weight this is, a row is a neighbour of itself and the mean is over B^2, not a sum over
    rows; ``diagonal=false`` leaves it out, as the paper's conditional probabilities (i != j) do. An
    embedding of length 0 is equally near to all. Generated rows are used like real ones; with one
    row the term is left out.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Weight of the divergence, and whether a row is a neighbour of itself."""

        weight: float = Field(30000.0, ge=0)
        diagonal: bool = True

    settings: Settings
    passes = student("embedding"), teacher("embedding")
    needs = Needs(min_rows=2)

    def terms(self, step: Step) -> Terms:
        """The divergence."""
        own = self.settings
        loss = transfer_loss(step.student.embedding, step.teacher.embedding, own.diagonal)
        return {"pkt": Term(loss, own.weight)}
