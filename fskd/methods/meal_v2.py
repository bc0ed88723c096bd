"""MEAL V2: soft targets of an ensemble of teachers alone, and a discriminator beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, soft_cross_entropy
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Needs, Term, Terms, each_teacher, student
from fskd.types import Shapes


def mean_similarity(
    student: Float[Tensor, "batch classes"], teachers: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Cross-entropy of the student with the mean of the teachers' probabilities, mean over rows.

    Args:
        student: Logits.
        teachers: Logits (rows, classes) of each teacher, constant.
    """
    probs = [F.softmax(at_least_float32(one.detach()), dim=1) for one in teachers]
    return soft_cross_entropy(student, torch.stack(probs).mean(0))


def discriminator(classes: int, reduction: int = 8) -> nn.Sequential:
    """Logits -> two scores: three linear layers, each with a ReLU behind it, the last one too.

    Args:
        classes: K; the inner widths are K/reduction and K/reduction^2, at least 1.
        reduction: How much narrower each layer is.
    """
    first, second = max(classes // reduction, 1), max(classes // reduction**2, 1)
    layers = nn.Linear(classes, first), nn.Linear(first, second), nn.Linear(second, 2)
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def origin_loss(
    student: Float[Tensor, "batch 2"], teacher: Float[Tensor, "batch 2"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the scores with (1, 0) for the student and (0, 1) for the teacher.

    Args:
        student: Scores of the student's logits.
        teacher: Scores of the teachers' mean logits.

    Returns:
        The mean over both scores and all rows of both.
    """
    scores = at_least_float32(torch.cat([student, teacher]))
    target = torch.zeros_like(scores)
    target[: len(student), 0] = target[len(student) :, 1] = 1
    return F.binary_cross_entropy_with_logits(scores, target)


@methods.register("meal_v2")
class MEALV2(Method):
    """Matches the mean class probabilities of several teachers; labels are not used.

    L = CE(s, mean_k softmax(t_k)) + discriminator_weight * BCE(D(s), D(mean_k t_k)), T = 1, with D
    three linear layers K -> K/8 -> K/64 -> 2, each followed by a ReLU.

    Shen and Savvides, *MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet
    without Tricks*, 2020, arXiv 2009.08453. As in the authors' code student and discriminator
    minimise the same loss, so nobody is deceived; with few classes the narrow layers often pass on
    nothing at all, and the term is then a constant. One optimiser trains both, without weight
    decay. The paper starts from a trained student, with a rate of 0.01; here it starts afresh, so
    the rate is the usual one. Generated rows are used like real ones.
    """

    family = "adversarial"

    class Settings(BareSettings):
        """Weights; labels have none in the paper."""

        ce_weight: float = Field(0.0, ge=0)
        similarity_weight: float = Field(1.0, ge=0)
        discriminator_weight: float = Field(1.0, ge=0)
        reduction: int = Field(8, ge=1)

    settings: Settings
    passes = student("logits"), each_teacher("logits")
    unit = frozenset({"similarity"})
    needs = Needs(teachers=2, exact_logits=True)
    defaults: ClassVar[Mapping[str, Any]] = {"optim": {"weight_decay": 0.0}}

    def build(self, shapes: Shapes) -> None:
        """The discriminator."""
        self.discriminator = discriminator(shapes.num_classes, self.settings.reduction)

    def terms(self, step: Step) -> Terms:
        """Similarity, and whose logits these are."""
        own, ours = self.settings, at_least_float32(step.student.logits)
        known = [at_least_float32(one.logits.detach()) for one in step.each("teachers")]
        scores = [self.discriminator(rows) for rows in (ours, torch.stack(known).mean(0))]
        return {
            "similarity": Term(mean_similarity(ours, known), own.similarity_weight),
            "discriminator": Term(origin_loss(*scores), own.discriminator_weight),
        }
