"""RKD: distances and angles between the examples of a batch."""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.relations import angles, relative_distances
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


def distance_loss(
    student: Float[Tensor, "batch dim_s"], teacher: Float[Tensor, "batch dim_t"]
) -> Float[Tensor, ""]:
    """Mean Huber loss (delta 1) over all ordered pairs of relative distances, diagonal included.

    Args:
        student: Embeddings.
        teacher: Embeddings of the same rows, treated as constant.
    """
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher.detach()))


def angle_loss(
    student: Float[Tensor, "batch dim_s"], teacher: Float[Tensor, "batch dim_t"]
) -> Float[Tensor, ""]:
    """Mean Huber loss (delta 1) over the cosines of all ordered triples.

    Args:
        student: Embeddings.
        teacher: Embeddings of the same rows, treated as constant.
    """
    return F.smooth_l1_loss(angles(student), angles(teacher.detach()))


@methods.register("rkd")
class RKD(Method):
    """Matches distances between pairs and angles between triples of embeddings in a batch.

    L = ce_weight*CE + dist_weight*mean_ij h(d_s,ij - d_t,ij)
    + angle_weight*mean_ijk h(cos_s,ijk - cos_t,ijk) + kd_weight*KD_T,
    with d_ij = norm(e_i - e_j) over the mean positive distance, cos_ijk the cosine of the angle at
    e_i between e_j and e_k, and h the Huber loss with delta 1.

    Park, Kim, Lu and Cho, *Relational Knowledge Distillation*, CVPR 2019, arXiv 1904.05068. Weights
    as in the CRD benchmark (Tian et al., ICLR 2020). Rows closer than 1e-6 count as one point.
    Generated rows are used like real ones; with fewer than three rows both terms are left out.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Weights of both relations."""

        dist_weight: float = Field(25.0, ge=0)
        angle_weight: float = Field(50.0, ge=0)

    settings: Settings
    passes = student("embedding"), teacher("embedding")
    needs = Needs(min_rows=3)

    def terms(self, step: Step) -> Terms:
        """Distances and angles."""
        pair = step.student.embedding, step.teacher.embedding
        return {
            "rkd_dist": Term(distance_loss(*pair), self.settings.dist_weight),
            "rkd_angle": Term(angle_loss(*pair), self.settings.angle_weight),
        }
