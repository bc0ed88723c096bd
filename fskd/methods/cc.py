"""CC: correlations between the rows of a batch."""

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.similarities import gram, unit_rows
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.types import Shapes

WEIGHTS = {"kernel": 100.0, "differences": 0.02}


def taylor_kernel(
    embeddings: Float[Tensor, "batch dim"], gamma: float = 0.4, order: int = 2
) -> Float[Tensor, "batch batch"]:
    """Gaussian kernel of unit vectors, exp(-gamma*norm(u_i - u_j)^2), as a Taylor series.

    Args:
        embeddings: One vector per row.
        gamma: Width, >= 0.
        order: P, the highest power of the series.

    Returns:
        sum_{p<=P} exp(-2 gamma) (2 gamma)^p / p! * <u_i, u_j>^p for all pairs.
    """
    cosines = gram(unit_rows(embeddings))
    factors = [
        math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)
    ]
    value = cosines * 0 + factors[-1]
    for factor in reversed(factors[:-1]):
        value = value * cosines + factor
    return value


def correlation_loss(
    student: Float[Tensor, "batch dim_s"],
    teacher: Float[Tensor, "batch dim_t"],
    gamma: float = 0.4,
    order: int = 2,
) -> Float[Tensor, ""]:
    """Mean over all pairs of the squared difference of both kernels.

    Args:
        student: Embeddings.
        teacher: Embeddings of the same rows, treated as constant.
        gamma: Width of the kernel.
        order: P, the highest power of the series.
    """
    ours = taylor_kernel(student, gamma, order)
    return F.mse_loss(ours, taylor_kernel(teacher.detach(), gamma, order))


def difference_loss(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Mean over i < B of sum_d abs(D_i,d) * abs(D_(i+1),d), D = student - teacher.

    Args:
        student: Embeddings of one width, two rows at least.
        teacher: Embeddings of the same rows; a gradient reaches them.
    """
    apart = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (apart[:-1] * apart[1:]).sum(1).mean()


@methods.register("cc")
class CC(Method):
    """Matches a Gaussian kernel between the embeddings of a batch.

    L = ce_weight*CE + weight * mean_ij (K_s,ij - K_t,ij)^2 + kd_weight*KD_T, where K (B, B) is
    sum_{p<=P} exp(-2g) (2g)^p / p! * cos(e_i, e_j)^p; widths of the embeddings may differ.

    Peng et al., *Correlation Congruence for Knowledge Distillation*, ICCV 2019, arXiv 1904.01802:
    its kernel, g and P. The weight of 100 is that of AberHu/Knowledge-Distillation-Zoo. Batches are
    drawn as in every run, not balanced by class as in the paper; its instance term is kd_weight.
    ``form=differences`` is what the CRD benchmark (Tian et al., ICLR 2020) calls CC, with its
    weight of 0.02: mean_i sum_d abs(D_i,d D_(i+1),d), D the difference of learned linear maps of
    both embeddings to ``feat_dim``. It is no correlation, depends on the order of the rows, and
    both maps are trained, so that a collapse to 0 is a minimum; hence it is not the default.
    Generated rows are used like real ones; with one row the term is left out.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Which form, its weight, and its kernel or width."""

        form: Literal["kernel", "differences"] = "kernel"
        weight: float | None = Field(None, ge=0, description="100 or 0.02, by form, if not given.")
        gamma: float = Field(0.4, ge=0, description="Of the kernel.")
        order: int = Field(2, ge=1, description="Of the kernel's Taylor series.")
        feat_dim: int = Field(128, gt=0, description="Of the differences.")

    settings: Settings
    passes = student("embedding"), teacher("embedding")
    needs = Needs(min_rows=2)

    def build(self, shapes: Shapes) -> None:
        """The linear maps of the differences."""
        if self.settings.form == "differences":
            dim = self.settings.feat_dim
            self.embed_student = nn.Linear(shapes.student.embedding[0], dim)
            self.embed_teacher = nn.Linear(shapes.known.embedding[0], dim)

    def terms(self, step: Step) -> Terms:
        """Either form."""
        own, ours, theirs = self.settings, step.student.embedding, step.teacher.embedding
        weight = WEIGHTS[own.form] if own.weight is None else own.weight
        if own.form == "kernel":
            return {"cc": Term(correlation_loss(ours, theirs, own.gamma, own.order), weight)}
        ours, theirs = at_least_float32(ours), at_least_float32(theirs.detach())
        loss = difference_loss(self.embed_student(ours), self.embed_teacher(theirs))
        return {"cc": Term(loss, weight)}
