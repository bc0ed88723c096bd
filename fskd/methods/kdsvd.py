"""KDSVD: how the main directions of neighbouring stages lie to each other."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import full_precision, pool_to_match
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher

EXTRA, WIDTH, LEAST_GAP = 3, 8.0, 1e-6
View = Literal["pixels", "columns"]


def matrices(maps: Float[Tensor, "batch channels height width"], view: View) -> Tensor:
    """Maps as matrices: pixels by channels, or channels and image rows by image columns."""
    maps = at_least_float32(maps)
    return maps.flatten(2).transpose(1, 2) if view == "pixels" else maps.flatten(1, 2)


def directions(
    x: Float[Tensor, "batch rows columns"], n: int
) -> tuple[Float[Tensor, "batch some"], Float[Tensor, "batch columns some"]]:
    """The largest singular values, constant, and their right singular vectors.

    The gradient of the vectors is that of first order, dv_j = sum_i v_i (v_i' dG v_j) / (l_j - l_i)
    over the eigenvectors of G = x'x with eigenvalues l; pairs whose eigenvalues differ by less than
    1e-6 of the largest have no part in it, where it would be arbitrary and infinite. The sign of a
    vector is free; here its entries' sum is not negative, so that no library or device decides.

    Args:
        x: Matrices.
        n: How many; fewer if the matrices have fewer rows or columns.
    """
    with full_precision(x):
        _, values, rows = torch.linalg.svd(x.detach(), full_matrices=False)
        every = rows.transpose(1, 2)
        top, squares = every[:, :, :n], values.square()
        top = torch.where(top.sum(1, keepdim=True) < 0, -top, top)
        moved = x.transpose(1, 2) @ (x @ top)
        moved = moved - moved.detach()  # 0, with the gradient of G top
        parts = rows @ moved
        largest = squares[:, None, :1]

        def over(gap: Tensor) -> Tensor:
            known = gap.abs() > LEAST_GAP * largest
            return torch.where(known, 1 / torch.where(known, gap, 1.0), 0.0)

        within = every @ (parts * over(squares[:, None, :n] - squares[:, :, None]))
        beyond = (moved - every @ parts) * over(squares[:, None, :n])
        return values[:, :n], top + within + beyond


def aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors the student's most parallel one, with its sign."""
    with full_precision(student):
        cosine = student.transpose(1, 2) @ teacher.detach()
        best = cosine.abs().argmax(1, keepdim=True)
        sign = cosine.gather(1, best).sign().detach()
        return sign * student.gather(2, best.expand(-1, student.shape[1], -1))


def singular_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], k: int = 1, view: View = "pixels"
) -> Float[Tensor, ""]:
    """Sum over neighbouring stages of sum (R_s - R_t)^2 / rows, R = exp(-(v_l - v_l+1)^2 / 8).

    Args:
        student: Maps (rows, C_l, H_l, W_l) of each stage, at least two.
        teacher: Maps of the same stages, with the same channels unless the view is ``columns``,
            which pools the larger maps. Treated as constant.
        k: Directions of each stage.
        view: What the columns of the matrices are.
    """
    found = []
    for s, t in zip(student, teacher, strict=True):
        s, t = (s, t.detach()) if view == "pixels" else pool_to_match(s, t.detach())
        scale, theirs = directions(matrices(t, view), k)
        _, ours = directions(matrices(s, view), k + EXTRA)
        scale = F.normalize(scale, dim=1)[:, None]
        found.append((aligned(ours, theirs) * scale, theirs * scale))
    terms = []
    for (s, t), (next_s, next_t) in pairwise(found):
        n = min(s.shape[2], next_s.shape[2])
        ours, theirs = (
            (-(b[:, :, None, :n] - a[:, None, :, :n]).square() / WIDTH).exp()
            for a, b in ((s, next_s), (t, next_t))
        )
        terms.append((ours - theirs).square().sum() / len(ours))
    return torch.stack(terms).sum()


@methods.register("kdsvd")
class KDSVD(Method):
    """Matches how the leading singular vectors of neighbouring stages lie to each other.

    L = ce_weight*CE + weight * sum_l sum (R_s,l - R_t,l)^2 / B + kd_weight*KD_T, where R_l[i, j] =
    exp(-(v_l+1[i] - v_l[j])^2 / 8) for each of k directions, v the right singular vectors of a
    stage's map as (H*W, C) times the teacher's singular values at unit length; of the student's
    k + 3 those are taken that are most parallel to the teacher's, with their sign. All stages but
    the stem.

    Lee, Kim and Song, *Self-supervised Knowledge Distillation Using Singular Value Decomposition*,
    ECCV 2018, arXiv 1807.06819; form and weight as in the CRD benchmark (Tian et al., ICLR 2020),
    which needs equal channels, and without the paper's truncation of gradients: here those between
    (nearly) equal singular values, which are infinite, are left out. ``view=columns`` is another
    public form, in which a map is (C*H, W): another loss that takes any channels, with larger maps
    pooled. The paper's form is the default. Generated rows are used like real ones.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight, number of directions, and the matrix that a map is taken for."""

        weight: float = Field(1.0, ge=0)
        k: int = Field(1, ge=1)
        view: View = "pixels"

    settings: Settings
    passes = student("stages"), teacher("stages")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Two stages, of equal channels where those are the columns."""
        alike = self.settings.view == "pixels"
        return Needs(stages=2, equal_channels=alike, equal_stages=True)

    def terms(self, step: Step) -> Terms:
        """The correlations."""
        own = self.settings
        loss = singular_loss(step.student.stages, step.teacher.stages, own.k, own.view)
        return {"kdsvd": Term(loss, own.weight)}
