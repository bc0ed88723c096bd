"""MixMatch: guessed labels of unlabelled rows, and mixes of everything with everything."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.mixes import draw, mixed
from fskd.losses.targets import at_least_float32, soft_cross_entropy
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Needs, Phase, Term, Terms, student
from fskd.types import Batch


def guessed_labels(
    views: Sequence[Float[Tensor, "rows classes"]], temperature: float
) -> Float[Tensor, "rows classes"]:
    """Mean class probabilities over the views, p^(1/T) made to sum to 1.

    Args:
        views: The student's logits for each view of the same rows.
        temperature: T > 0; below 1 the guess becomes surer.
    """
    mean = torch.stack([at_least_float32(logits).softmax(1) for logits in views]).mean(0)
    # In logarithms, since powers of small probabilities are 0 in float32.
    return (mean.log() / temperature).softmax(1)


def squared_error(
    student: Float[Tensor, "batch classes"], probs: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean over rows and classes of (softmax(student) - probs)^2."""
    return F.mse_loss(at_least_float32(student).softmax(1), probs)


@methods.register("mixmatch")
class MixMatch(Method):
    """Matches mixes of true labels and of the student's own guesses for unlabelled images.

    q = mean of the student's probabilities over two views of an unlabelled image, sharpened to
    p^(1/T). All rows, labelled and both views, are mixed with the same rows in a random order,
    images and labels alike, by one share l' = max(l, 1-l), l ~ Beta(alpha, alpha), so that a row
    stays closest to itself. L = CE(first B rows, mixed labels) + lambda_u * min(fraction/rampup, 1)
    * mean over rows and classes of (softmax(s) - mixed q)^2 over the others. No teacher.

    Berthelot et al., *MixMatch: A Holistic Approach to Semi-Supervised Learning*, NeurIPS 2019,
    arXiv 1905.02249. The paper raises lambda_u over the first 16 of 1024 epochs (rampup 1/64); as
    in the common PyTorch code (YU1ut) it rises over the whole run here. All mixed rows go through
    the student together, so batch norm sees them as the reference does by interleaving; guesses use
    the statistics of the unlabelled rows. Its decay of 4e-5 of the weights a step is AdamW's 0.02.

    Unlabelled rows are all first views, then all second views in the same order. Rows are mixed
    with each other, so the value depends on which rows are together and on their order. Generated
    rows and views of other methods are left as they are; labels that other methods learn beside
    this one would belong to rows that are mixed.
    """

    family = "semi-supervised"

    class Settings(BareSettings):
        """Sharpening, mixing, and the weight of guesses."""

        temperature: float = Field(0.5, gt=0)
        alpha: float = Field(0.75, gt=0)
        lambda_u: float = Field(75.0, ge=0)
        rampup: float = Field(1.0, gt=0, description="Share of the run over which lambda_u rises.")

    settings: Settings
    passes = (student("logits"),)
    phases = (Phase(objective=frozenset()),)
    unit = frozenset({"labelled"})
    needs = Needs(unlabelled=2)
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.02, "ema": 0.999},
        "data": {"augment": {"affine": 1.0}},  # two views have to differ
    }

    def relabel(self, batch: Batch, ask: Callable[[Tensor], Tensor], rng: torch.Generator) -> Batch:
        """Mixed real and unlabelled rows, with mixed labels."""
        own, n = self.settings, batch.n_known
        views = ask(batch.inputs[batch.part("unlabelled")]).chunk(2)
        guess = guessed_labels(views, own.temperature)
        truth = F.one_hot(batch.targets, guess.shape[1]).to(guess)
        order, share = draw(n, own.alpha, rng)
        rows = mixed(batch.inputs[:n], order, share)
        soft = mixed(torch.cat([truth, guess, guess]), order, share)
        return batch._replace(inputs=torch.cat([rows, batch.inputs[n:]]), soft=soft)

    def terms(self, step: Step) -> Terms:
        """Mixes that began as labelled rows, and the others."""
        own, n, soft = self.settings, step.batch.n_real, cast(Tensor, step.batch.soft)
        logits, ramp = step.student.logits[: len(soft)], step.progress.fraction / own.rampup
        guessed = squared_error(logits[n:], soft[n:])
        found = {"guessed": Term(guessed, own.lambda_u * min(ramp, 1.0))}
        return found | ({"labelled": Term(soft_cross_entropy(logits[:n], soft[:n]))} if n else {})
