"""SSKD: the teacher's answers on rotated images, and which copy it thinks belongs to which."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import full_precision
from fskd.losses.targets import at_least_float32
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.objective import Objective
from fskd.methods.words import Needs, Phase, Term, Terms, student, teacher
from fskd.types import Batch, Shapes

ROTATIONS = 3


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

    family = "relations"

    class Settings(BareSettings):
        """Ratios are shares of the rows kept among those that the teacher gets wrong."""

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

        def objective(self) -> Objective:
            """Real rows only."""
            return Objective(self.ce_weight, self.kd_weight, 0.0, temperature=self.kd_temperature)

    settings: Settings
    passes = student("logits", "embedding"), teacher("logits", "embedding")
    rows = "real"
    needs = Needs(min_rows=1, square=True)

    @property
    def phases(self) -> Sequence[Phase]:
        """The teacher's head, then the student."""
        head = Phase(
            name="head",
            share=self.settings.head_share,
            trains=("method.teacher_head",),
            passes=(teacher("embedding"),),
            terms="head",
            objective=frozenset(),
        )
        return head, Phase(trains=("student", "method.student_head"))

    def build(self, shapes: Shapes) -> None:
        """Both projection heads."""
        self.student_head = projection_head(shapes.student.embedding[0])
        self.teacher_head = projection_head(shapes.known.embedding[0])

    def views(self, batch: Batch, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Real rows rotated by 90, then all by 180, then all by 270 degrees (3B rows)."""
        if batch.n_real == 0:
            return {}
        real = batch.inputs[: batch.n_real]
        turned = [torch.rot90(real, turns, (2, 3)) for turns in range(1, ROTATIONS + 1)]
        return {"rotated": torch.cat(turned)}

    def head(self, step: Step) -> Terms:
        """The term of the first phase."""
        upright, rotated = self.projections(self.teacher_head, step, "teacher")
        return {"head": Term(head_loss(rotated, upright, self.owners(step.batch)))}

    def terms(self, step: Step) -> Terms:
        """Rotated rows and similarities."""
        own, batch = self.settings, step.batch
        turned = step.on("rotated")
        goal = self.by_image(turned.teacher.logits, batch)
        keep = kept_rows(goal, batch.targets.repeat_interleave(ROTATIONS), own.tf_ratio)
        ours = self.by_image(turned.student.logits, batch)
        tf = kept_divergence(ours, goal, keep, own.tf_temperature)
        with torch.no_grad():
            upright, rotated = self.projections(self.teacher_head, step, "teacher")
            goal = similarities(rotated, upright)
            keep = kept_rows(goal, self.owners(batch), own.ss_ratio)
        upright, rotated = self.projections(self.student_head, step, "student")
        ss = kept_divergence(similarities(rotated, upright), goal, keep, own.ss_temperature)
        return {"tf": Term(tf, own.tf_weight), "ss": Term(ss, own.ss_weight)}

    def projections(self, head: nn.Module, step: Step, net: str) -> tuple[Tensor, Tensor]:
        """Projections (B, D) of upright rows and (3B, D) of rotated ones."""
        turned = self.by_image(step.on("rotated")[net].embedding, step.batch)
        rows = torch.cat([step[net].embedding, turned])
        if net == "teacher":
            rows = rows.detach()
        projected = head(at_least_float32(rows))
        return projected[: step.batch.n_real], projected[step.batch.n_real :]

    @staticmethod
    def by_image(rows: Tensor, batch: Batch) -> Tensor:
        """The rows (3B, ...) with the copies of one image adjacent."""
        return rows.unflatten(0, (ROTATIONS, batch.n_real)).transpose(0, 1).flatten(0, 1)

    @staticmethod
    def owners(batch: Batch) -> Tensor:
        """Upright row of each rotated one, (3B,)."""
        rows = torch.arange(batch.n_real, device=batch.targets.device)
        return rows.repeat_interleave(ROTATIONS)
