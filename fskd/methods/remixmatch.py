"""ReMixMatch: one aligned guess for many views of an unlabelled image, and rotations."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.mixes import draw, mixed
from fskd.losses.targets import at_least_float32, soft_cross_entropy
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Needs, Phase, Term, Terms, student
from fskd.types import Batch, Shapes

EPS, MEMORY, TURNS = 1e-6, 128, 4


def aligned_labels(
    anchor: Float[Tensor, "rows classes"],
    truth: Float[Tensor, " classes"],
    seen: Float[Tensor, " classes"],
    temperature: float,
) -> Float[Tensor, "rows classes"]:
    """softmax(anchor) * (truth + e)/(seen + e), its power 1/T, made to sum to 1; e = 1e-6.

    Args:
        anchor: The student's logits for the anchoring view.
        truth: Share of each class among the labelled examples.
        seen: The student's mean probabilities in the last batches.
        temperature: T > 0; below 1 the guess becomes surer.
    """
    logs = F.log_softmax(at_least_float32(anchor), dim=1)
    return ((logs + ((truth + EPS) / (seen + EPS)).log()) / temperature).softmax(1)


def turned(images: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows c h w"]:
    """Row i rotated by (i mod 4) * 90 degrees."""
    made = images.clone()
    for turns in range(1, TURNS):
        made[turns::TURNS] = torch.rot90(images[turns::TURNS], turns, (2, 3))
    return made


@methods.register("remixmatch")
class ReMixMatch(Method):
    """Matches mixes of true labels and of aligned guesses, each guess for many views of an image.

    q = Normalise((p(anchor) * p_data / p_model)^(1/T)): p (U, K) the student's probabilities of the
    first view of an unlabelled image, p_data the classes' shares among labelled examples, p_model
    the mean of p over the last 128 batches (uniform ones at first). q is the label of the anchor
    and of K strong views, which are mixed with each other and the labelled rows as in ``mixmatch``.
    L = CE(mixed labelled) + lambda_u CE(mixed unlabelled) + lambda_s CE(a strong view unmixed, q)
    + lambda_r CE(a linear head on the embedding (U, D), by which of 4 rotations that view was
    turned). No teacher.

    Berthelot et al., *ReMixMatch: Semi-Supervised Learning with Distribution Alignment and
    Augmentation Anchoring*, ICLR 2020, arXiv 1911.09785. Differences: a run's views are all moved
    alike (``data.augment``), so that the anchor is no weaker than what it anchors, and there is no
    CTAugment; the unmixed term and the rotations have a view of their own, where the paper takes
    the first strong one; rotations follow from the place in the batch, whose order is random;
    p_data is counted over the subset; one share of mixing per batch. Guesses use the batch
    statistics of the anchors. The decay of the weights is ``mixmatch``'s.
    Values depend on the company and order of rows. Generated rows are left as they are.
    """

    family = "semi-supervised"

    class Settings(BareSettings):
        """Sharpening, mixing, views, and the weights of the terms."""

        temperature: float = Field(0.5, gt=0)
        alpha: float = Field(0.75, gt=0)
        n_strong: int = Field(8, ge=1, description="Views beside the anchor that are mixed.")
        lambda_u: float = Field(1.5, ge=0)
        lambda_s: float = Field(0.5, ge=0)
        lambda_r: float = Field(0.5, ge=0)

    settings: Settings
    seen: Tensor
    passes = (student("logits", "embedding"),)
    phases = (Phase(objective=frozenset()),)
    unit = frozenset({"labelled", "guessed", "anchored"})
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.02, "ema": 0.999},
        "data": {"augment": {"affine": 1.0}},  # views have to differ
    }

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The anchor, the strong views that are mixed, and one that is not."""
        return Needs(unlabelled=self.settings.n_strong + 2, square=True, one_process=True)

    def build(self, shapes: Shapes) -> None:
        """The head for rotations, and the student's mean probabilities of the last batches."""
        self.head = nn.Linear(shapes.student.embedding[0], TURNS)
        uniform = torch.full((MEMORY, shapes.num_classes), 1 / shapes.num_classes)
        self.register_buffer("seen", uniform)

    def views(self, batch: Batch, rng: torch.Generator) -> Mapping[str, Tensor]:
        """The last view of each unlabelled row, rotated."""
        return {"rotated": turned(self.by_view(batch)[-1])}

    def relabel(self, batch: Batch, ask: Callable[[Tensor], Tensor], rng: torch.Generator) -> Batch:
        """Mixed rows with mixed labels; the last view as it is, with its guess."""
        own, views = self.settings, self.by_view(batch)
        logits = at_least_float32(ask(views[0]))
        counts = self.shapes.targets.bincount(minlength=logits.shape[1])
        truth = (counts / counts.sum()).to(logits)
        guess = aligned_labels(logits, truth, self.seen.mean(0).to(logits), own.temperature)
        now = logits.softmax(1).mean(0, keepdim=True).to(self.seen)
        self.seen.copy_(torch.cat([self.seen[1:], now]))
        n = batch.n_known - len(guess)
        labels = F.one_hot(batch.targets, guess.shape[1]).to(guess)
        order, share = draw(n, own.alpha, rng)
        soft = mixed(torch.cat([labels, *[guess] * (len(views) - 1)]), order, share)
        inputs = torch.cat([mixed(batch.inputs[:n], order, share), batch.inputs[n:]])
        return batch._replace(inputs=inputs, soft=torch.cat([soft, guess]))

    def terms(self, step: Step) -> Terms:
        """Mixes that began as labelled rows, the other mixes, and the view that is not mixed."""
        own, n, soft = self.settings, step.batch.n_real, cast(Tensor, step.batch.soft)
        rotated = step.on("rotated").student.embedding
        logits, end = step.student.logits[: len(soft)], len(soft) - len(rotated)
        turns = torch.arange(len(rotated), device=rotated.device) % TURNS
        rotation = F.cross_entropy(at_least_float32(self.head(at_least_float32(rotated))), turns)
        found = {
            "guessed": Term(soft_cross_entropy(logits[n:end], soft[n:end]), own.lambda_u),
            "anchored": Term(soft_cross_entropy(logits[end:], soft[end:]), own.lambda_s),
            "rotation": Term(rotation, own.lambda_r),
        }
        return found | ({"labelled": Term(soft_cross_entropy(logits[:n], soft[:n]))} if n else {})

    def by_view(self, batch: Batch) -> tuple[Tensor, ...]:
        """Unlabelled rows, one tensor for each view."""
        return batch.inputs[batch.part("unlabelled")].chunk(self.needs.unlabelled)
