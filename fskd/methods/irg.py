"""IRG: graphs of the rows of a batch, and how they change from one stage to the next."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import pool_to_match
from fskd.losses.similarities import gram
from fskd.losses.targets import at_least_float32, logits_mse
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher

LEAST = 1e-12


def relative(squares: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Squared distances divided by the largest, through which a gradient goes; 0 if it is tiny."""
    largest = squares.amax()
    return squares * (largest.detach() > LEAST) / largest.clamp(min=LEAST)


def edges(vertices: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch batch"]:
    """Squared distances of all pairs of rows, divided by the largest.

    Args:
        vertices: Maps or vectors.
    """
    vectors = at_least_float32(vertices).flatten(1)
    # A common shift changes no distance, and keeps what is subtracted below small.
    products = gram(vectors - vectors.detach().mean(0))
    squares = products.diag()[:, None] + products.diag()[None, :] - 2 * products
    other = ~torch.eye(len(squares), dtype=torch.bool, device=squares.device)
    return relative(squares.clamp(min=0) * other)


def edge_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean over layers and pairs of the squared difference of edges.

    Args:
        student: Maps or vectors (rows, ...) of each layer.
        teacher: The same of the teacher, of any shape, treated as constant.
    """
    layers = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(edges(s), edges(t.detach())) for s, t in layers]).mean()


def transformation(first: Tensor, second: Tensor) -> Float[Tensor, " batch"]:
    """Squared distance of each row between two stages, divided by the largest of the batch.

    The larger map is pooled to the size of the smaller, then the wider one to the channels of the
    narrower: means of pairs where it is twice as wide.

    Args:
        first: Maps (rows, C_1, H_1, W_1).
        second: Maps (rows, C_2, H_2, W_2) of the same rows.
    """
    maps = [one.flatten(2).transpose(1, 2) for one in pool_to_match(first, second)]
    width = min(one.shape[2] for one in maps)
    first, second = (F.adaptive_avg_pool1d(one, width) for one in maps)
    return relative((first - second).square().sum((1, 2)))


def transformation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean over rows of the squared difference of transformations.

    Args:
        student: Maps of two stages.
        teacher: Maps of two stages of the same rows, treated as constant.
    """
    ours, theirs = student, [one.detach() for one in teacher]
    return F.mse_loss(transformation(*ours), transformation(*theirs))


@methods.register("irg")
class IRG(Method):
    """Matches logits, distances between rows, and how far rows move between two stages.

    L = ce_weight*CE + vertex_weight*mean (s - t)^2 + edge_weight * mean_l mean_ij (E_s - E_t)^2
    + transform_weight * mean_i (R_s,i - R_t,i)^2 + kd_weight*KD_T for logits s, t (B, K),
    E_ij = norm(x_i - x_j)^2 / max of the batch for x the embedding and the maps of the last two
    stages, and R_i = norm(F_i,1 - F_i,2)^2 / max between these maps.

    Liu et al., *Knowledge Distillation via Instance Relationship Graph*, CVPR 2019. The authors'
    code is for Caffe; layers, weights and the division by the largest, through which a gradient
    goes, are those of AberHu/Knowledge-Distillation-Zoo (one-to-one mode). There a second stage is
    narrowed by pairs of channels only; here to any width. Where all rows coincide E and R are 0.
    Generated rows are used like real ones; with one row, which has no relations, own terms are
    left out.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Weights of vertices, edges and transformations."""

        vertex_weight: float = Field(0.1, ge=0)
        edge_weight: float = Field(5.0, ge=0)
        transform_weight: float = Field(5.0, ge=0)

    settings: Settings
    passes = student("logits", "embedding", "stages"), teacher("logits", "embedding", "stages")
    needs = Needs(stages=2, min_rows=2, exact_logits=True)

    def terms(self, step: Step) -> Terms:
        """Vertices, edges and transformations."""
        own, ours, theirs = self.settings, step.student, step.teacher
        pair = ours.stages[-2:], theirs.stages[-2:]
        edge = edge_loss((ours.embedding, *pair[0]), (theirs.embedding, *pair[1]))
        return {
            "irg_vertex": Term(logits_mse(ours.logits, theirs.logits), own.vertex_weight),
            "irg_edge": Term(edge, own.edge_weight),
            "irg_transform": Term(transformation_loss(*pair), own.transform_weight),
        }
