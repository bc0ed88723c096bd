"""CRD: the student's embedding picks the teacher's embedding of the same image."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import full_precision
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods, require
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.seeding import torch_generator
from fskd.types import Batch, Shapes

EPS = 1e-7


def contrast_scores(
    anchors: Float[Tensor, "batch dim"],
    memory: Float[Tensor, "examples dim"],
    candidates: Int[Tensor, "batch options"],
    tau: float = 0.07,
) -> Float[Tensor, "batch options"]:
    """exp(<memory_k, anchor_b> / tau) for the candidates k of each row, not normalised.

    The product is taken with the whole memory: one matrix product, and batch * examples numbers
    instead of batch * options * dim.

    Args:
        anchors: Unit vectors.
        memory: One vector per training example.
        candidates: Positions in the memory.
        tau: Temperature > 0.
    """
    with full_precision(anchors):
        return (anchors @ memory.T).gather(1, candidates).div(tau).exp()


def contrastive_loss(scores: Float[Tensor, "batch options"], n_train: int) -> Float[Tensor, ""]:
    """Noise-contrastive loss of one positive (column 0) against K negatives, mean over rows.

    Args:
        scores: Normalised scores q >= 0, the positive first.
        n_train: n; noise is uniform over the examples.

    Returns:
        -(1/B) sum_b [log(q_b0 / (q_b0 + c)) + sum_k log((K/n) / (q_bk + c))], c = K/n + 1e-7.
    """
    noise = (scores.shape[1] - 1) / n_train
    positive, negatives = scores[:, 0], scores[:, 1:]
    # A positive that is 0 in float32, with a small tau, has the least logarithm and no gradient.
    log_positive = positive.clamp(min=torch.finfo(positive.dtype).tiny).log()
    log_positive = log_positive - (positive + noise + EPS).log()
    log_negative = math.log(noise) - (negatives + noise + EPS).log()
    return -(log_positive + log_negative.sum(1)).mean()


def draw_negatives(
    targets: Int[Tensor, " examples"],
    classes: Int[Tensor, " batch"],
    n_negatives: int,
    rng: torch.Generator,
) -> Int[Tensor, "batch negatives"]:
    """Examples of other classes for each row, uniformly and with replacement.

    Args:
        targets: Class of every training example.
        classes: Class of each row.
        n_negatives: K.
        rng: CPU generator.

    Returns:
        Positions in ``targets``, on the CPU.
    """
    order = targets.argsort(stable=True)
    counts = torch.bincount(targets)
    own, start = counts[classes, None], (counts.cumsum(0) - counts)[classes, None]
    # Positions in class order with the row's own class cut out.
    share = torch.rand(len(classes), n_negatives, generator=rng, dtype=torch.float64)
    picks = (share * (len(targets) - own)).long()
    return order[torch.where(picks >= start, picks + own, picks)]


@methods.register("crd")
class CRD(Method):
    """Matches embeddings by contrast: the same image against images of other classes.

    L = ce_weight*CE + weight*(C(v_s, M_t) + C(v_t, M_s)) + kd_weight*KD_T, where v are learned
    linear maps of the embeddings to unit vectors, M memories of past v with one row per training
    example, q_k = exp(<M_k, v>/tau)/Z, and
    C = -mean_b [log h(q_i) + sum_k log((K/n)/(q_k + K/n + 1e-7))], h(q) = q/(q + K/n + 1e-7),
    with i the row's own example and k its K negatives. Z is the mean score of the first batch
    times n and stays fixed; memories are updated after they are read.

    Tian, Krishnan and Isola, *Contrastive Representation Distillation*, ICLR 2020, arXiv
    1910.10699. Positions are those within the training subset. Negatives are drawn with replacement
    (the authors' code replaces only where there are too few), from (seed, step), so that a resumed
    run repeats the uninterrupted one. So K may exceed the subset, K/n included, and one image of
    another class is enough; a subset of one class is refused. Generated rows have no position and
    enter the KD term only. With tau below 0.02 exp(1/tau) leaves little of float32: refused.
    """

    family = "relations"

    class Settings(MethodSettings):
        """Weight, width, negatives, temperature and momentum of the contrast."""

        weight: float = Field(0.8, ge=0)
        feat_dim: int = Field(128, gt=0)
        n_negatives: int = Field(16384, gt=0)
        tau: float = Field(0.07, ge=0.02)
        momentum: float = Field(0.5, ge=0, le=1)

    settings: Settings
    passes = student("embedding"), teacher("embedding")
    rows = "real"
    needs = Needs(min_rows=1, one_process=True)
    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def build(self, shapes: Shapes) -> None:
        """Embeddings, memories and their normalisers."""
        n_classes = len(shapes.targets.unique())
        require(n_classes > 1, "crd", f"a subset with {n_classes} class", "at least 2 classes")
        dim, n = self.settings.feat_dim, shapes.n_train
        self.embed_student = nn.Linear(shapes.student.embedding[0], dim)
        self.embed_teacher = nn.Linear(shapes.known.embedding[0], dim)
        bound = 1 / math.sqrt(dim / 3)
        for role in ("student", "teacher"):
            rng = torch_generator(shapes.seed, "crd", "memory", role)
            memory = torch.rand(n, dim, generator=rng).mul(2 * bound).sub(bound)
            self.register_buffer(f"memory_{role}", memory)
            self.register_buffer(f"z_{role}", torch.tensor(-1.0))

    def terms(self, step: Step) -> Terms:
        """The contrast in both directions; the memories move on."""
        candidates = self.candidates(step.batch, step.progress.step)
        pair = step.student.embedding, step.teacher.embedding
        loss = self.contrast(*pair, step.batch.indices, candidates)
        return {"crd": Term(loss, self.settings.weight)}

    def candidates(self, batch: Batch, step: int) -> Tensor:
        """Positions (B, 1+K) of each row's own example and of the negatives of this step."""
        rng = torch_generator(self.shapes.seed, "crd", "negatives", step)
        negatives = draw_negatives(
            self.shapes.targets, batch.targets.cpu(), self.settings.n_negatives, rng
        ).to(batch.indices.device)
        return torch.cat([batch.indices.unsqueeze(1), negatives], dim=1)

    def contrast(
        self, student: Tensor, teacher: Tensor, indices: Tensor, candidates: Tensor
    ) -> Tensor:
        """Contrastive loss in both directions; then the memories of the rows are updated.

        Args:
            student: Embeddings (B, D_s).
            teacher: Embeddings (B, D_t), treated as constant.
            indices: Position (B,) of each row in the memories.
            candidates: Positions (B, 1+K), each row's own first.
        """
        anchor_s = F.normalize(at_least_float32(self.embed_student(self._cast(student))), dim=1)
        anchor_t = F.normalize(
            at_least_float32(self.embed_teacher(self._cast(teacher.detach()))), dim=1
        )
        loss = self._one_side(anchor_s, self.memory_teacher, self.z_student, candidates)
        loss = loss + self._one_side(anchor_t, self.memory_student, self.z_teacher, candidates)
        self._remember(self.memory_student, indices, anchor_s)
        self._remember(self.memory_teacher, indices, anchor_t)
        return loss

    def _cast(self, embeddings: Tensor) -> Tensor:
        return embeddings.to(self.embed_student.weight.dtype)

    def _one_side(self, anchors: Tensor, memory: Tensor, z: Tensor, candidates: Tensor) -> Tensor:
        # Copies, because memory and Z change in place before backward reads them.
        scores = contrast_scores(anchors, memory.clone(), candidates, self.settings.tau)
        first = scores.detach().mean() * self.shapes.n_train
        z.copy_(torch.where(z < 0, first, z))
        return contrastive_loss(scores / z.clone(), self.shapes.n_train)

    @torch.no_grad()
    def _remember(self, memory: Tensor, indices: Tensor, anchors: Tensor) -> None:
        momentum = self.settings.momentum
        mixed = momentum * memory[indices] + (1 - momentum) * anchors
        memory.index_copy_(0, indices, F.normalize(mixed, dim=1))
