"""SSKD: the teacher's answers on rotated images, and which copy it thinks belongs to which."""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import full_precision
from fskd.losses.targets import at_least_float32, kl_divergence
from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    Phase,
    Reads,
    label_terms,
    methods,
    require,
)
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

ROTATIONS = 3


class SSKDSettings(MethodSettings):
    """Settings of SSKD; ratios are shares of the rows kept among those the teacher gets wrong."""

    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    tf_weight: float = Field(2.7, ge=0)
    ss_weight: float = Field(10.0, ge=0)
    kd_temperature: float = Field(4.0, gt=0)
    tf_temperature: float = Field(4.0, gt=0)
    ss_temperature: float = Field(0.5, gt=0)
    tf_ratio: float = Field(1.0, ge=0, le=1)
    ss_ratio: float = Field(0.75, ge=0, le=1)
    head_share: float = Field(60 / 240, gt=0)


def similarities(
    rotated: Float[Tensor, "rotated dim"], upright: Float[Tensor, "upright dim"]
) -> Float[Tensor, "rotated upright"]:
    """Cosine similarity of every rotated copy with every upright image.

    Args:
        rotated: Projections of rotated copies.
        upright: Projections of upright images.
    """
    rotated, upright = at_least_float32(rotated), at_least_float32(upright)
    with full_precision(rotated):
        return F.normalize(rotated, dim=1, eps=1e-8) @ F.normalize(upright, dim=1, eps=1e-8).T


def head_loss(
    rotated: Float[Tensor, "rotated dim"],
    upright: Float[Tensor, "upright dim"],
    owners: Int[Tensor, " rotated"],
) -> Float[Tensor, ""]:
    """Cross-entropy over cosine similarities (temperature 1): which image a copy belongs to.

    Args:
        rotated: Projections of rotated copies.
        upright: Projections of upright images.
        owners: Row of ``upright`` that each copy was made from.
    """
    return F.cross_entropy(similarities(rotated, upright), owners)


def kept_rows(
    scores: Float[Tensor, "rows options"], truth: Int[Tensor, " rows"], ratio: float
) -> Bool[Tensor, " rows"]:
    """Rows to distil: all that rank the truth first, and the best-ranked share of the others.

    Args:
        scores: The teacher's scores.
        truth: Right option of each row.
        ratio: Share of the wrong rows that is kept, rounded down; in [0, 1].

    Returns:
        True for kept rows; equal ranks are cut in row order.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = (order == truth.unsqueeze(1)).int().argmax(1)
    n_wrong = (rank > 0).sum()
    n_kept = len(rank) - n_wrong + (n_wrong.double() * ratio).long()
    place = rank.argsort(stable=True).argsort()
    return place < n_kept


def kept_divergence(
    student: Float[Tensor, "rows options"],
    teacher: Float[Tensor, "rows options"],
    keep: Bool[Tensor, " rows"],
    temperature: float,
) -> Float[Tensor, ""]:
    """T^2 * KL(softmax(t/T) || softmax(s/T)), averaged over the kept rows; 0 if there are none.

    Args:
        student: Scores.
        teacher: Scores, treated as constant.
        keep: Rows that count.
        temperature: T > 0.
    """
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=1)
    log_p = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=1)
    rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return (rows * keep).sum() / keep.sum().clamp(min=1) * temperature**2


def projection_head(dim: int) -> nn.Sequential:
    """Two linear layers of the embedding's width with ReLU between."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


@methods.register("sskd")
class SSKD(Method):
    """Matches class probabilities on upright and rotated images and similarities between the two.

    Phase ``head`` (the teacher's projection head only): cross-entropy over cosine similarities
    that assigns each rotated copy to its upright image. Phase ``main``:
    L = ce_weight*CE + kd_weight*KD + tf_weight*TF + ss_weight*SS. CE and KD use upright images; TF
    is the same divergence on copies rotated by 90, 180 and 270 degrees; SS is the divergence
    between rows of the [3B, B] similarity matrices of rotated to upright projections. TF and SS
    keep all rows that the teacher gets right and the best-ranked share of the others.

    Xu, Liu, Li and Loy, *Knowledge Distillation Meets Self-Supervision*, ECCV 2020, arXiv
    2006.07114; weights of the arXiv version and the authors' code. Similarities relate the rows of
    a batch, so the value depends on which rows are together. Real rows only.
    """

    Settings = SSKDSettings
    settings: SSKDSettings

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__(settings, shapes)
        height, width = shapes.inputs[-2:] if shapes.inputs else (0, 0)
        require(height == width, "sskd", f"images of {height}x{width}", "square images")
        self.student_head = projection_head(shapes.students[0].embedding[0])
        self.teacher_head = projection_head(cast(TapShapes, shapes.teacher).embedding[0])

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        both, embedding = frozenset({"logits", "embedding"}), frozenset({"embedding"})
        return (
            Phase(
                name="head",
                share=cast(SSKDSettings, settings).head_share,
                trains=("method.teacher_head",),
                reads=Reads(student=frozenset(), teacher=embedding),
            ),
            Phase(
                trains=("students", "method.student_head"), reads=Reads(student=both, teacher=both)
            ),
        )

    def views(self, batch: Batch, rng: torch.Generator, progress: Progress) -> Tensor | None:
        """Real rows rotated by 90, then all by 180, then all by 270 degrees (3B rows)."""
        if batch.n_real == 0:
            return None
        real = batch.inputs[: batch.n_real]
        return torch.cat([torch.rot90(real, turns, (2, 3)) for turns in range(1, ROTATIONS + 1)])

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        if batch.n_real == 0:
            return {}
        if progress.phase == "head":
            projected = self.project(self.teacher_head, teacher.embedding.detach())
            upright, rotated = self.split(projected, batch)
            return {"head": head_loss(rotated, upright, self.owners(batch))}
        student = students[0]
        goal, goal_rotated = self.split(teacher.logits, batch)
        terms = label_terms(student, batch)
        upright, rotated = self.split(student.logits, batch)
        terms["kd"] = kl_divergence(upright, goal, self.settings.kd_temperature)
        keep = kept_rows(
            goal_rotated, batch.targets.repeat_interleave(ROTATIONS), self.settings.tf_ratio
        )
        terms["tf"] = kept_divergence(rotated, goal_rotated, keep, self.settings.tf_temperature)
        terms["ss"] = self.similarity_term(student, teacher, batch)
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        settings = self.settings
        if progress.phase == "head":
            return {"head": 1.0}
        return {
            "ce": settings.ce_weight,
            "kd": settings.kd_weight,
            "tf": settings.tf_weight,
            "ss": settings.ss_weight,
        }

    def similarity_term(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The term ``ss`` from both networks' projections."""
        upright_s, rotated_s = self.split(self.project(self.student_head, student.embedding), batch)
        with torch.no_grad():
            upright_t, rotated_t = self.split(
                self.project(self.teacher_head, teacher.embedding), batch
            )
            goal = similarities(rotated_t, upright_t)
            keep = kept_rows(goal, self.owners(batch), self.settings.ss_ratio)
        ours = similarities(rotated_s, upright_s)
        return kept_divergence(ours, goal, keep, self.settings.ss_temperature)

    @staticmethod
    def project(head: nn.Sequential, embedding: Tensor) -> Tensor:
        """Projections (rows, D) of all rows."""
        return head(at_least_float32(embedding))

    @staticmethod
    def split(rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Upright rows (B, ...) and rotated rows (3B, ...), the copies of one image adjacent."""
        blocks = rows[batch.n_base : batch.n_base + ROTATIONS * batch.n_real]
        rotated = blocks.unflatten(0, (ROTATIONS, batch.n_real)).transpose(0, 1).flatten(0, 1)
        return rows[: batch.n_real], rotated

    @staticmethod
    def owners(batch: Batch) -> Tensor:
        """Upright row of each rotated one, (3B,)."""
        rows = torch.arange(batch.n_real, device=batch.targets.device)
        return rows.repeat_interleave(ROTATIONS)
