"""KDGAN: student and a tutor deceive a judge of labels and learn from each other."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, kl_divergence
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import LOGITS, Needs, Pass, Player, Role, Term, Terms, student, teacher
from fskd.types import Shapes

ADAM: Mapping[str, Any] = {"name": "adam", "weight_decay": 0.0}


def drawn_labels(
    logits: Float[Tensor, "batch classes"], tau: float = 1.0
) -> Float[Tensor, "batch classes"]:
    """A class drawn in each row from softmax(logits), as one-hot rows with a gradient.

    Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017, arXiv
    1611.01144: the value is one-hot, the gradient that of softmax((logits + noise)/tau).

    Args:
        logits: Logits.
        tau: How soft the gradient is, > 0.
    """
    return F.gumbel_softmax(at_least_float32(logits), tau, hard=True, dim=1)


def judge_loss(
    scores: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"],
    student: Float[Tensor, "batch classes"],
    tutor: Float[Tensor, "batch classes"],
    share: float = 0.5,
) -> Float[Tensor, ""]:
    """Mean of -log d(y) - share*log(1-d(y_c)) - (1-share)*log(1-d(y_t)), d = sigmoid(scores).

    Args:
        scores: The judge's score of every class.
        targets: True classes y.
        student: Labels y_c drawn from the student, one-hot, constant.
        tutor: Labels y_t drawn from the tutor, one-hot, constant.
        share: Of the student among drawn labels.
    """
    scores = at_least_float32(scores)
    true = F.softplus(-scores.gather(1, targets.unsqueeze(1))).squeeze(1)
    fake = [F.softplus((scores * one.detach()).sum(1)) for one in (student, tutor)]
    return (true + share * fake[0] + (1 - share) * fake[1]).mean()


def deceit_loss(
    scores: Float[Tensor, "batch classes"], drawn: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean of -log d(y), d = sigmoid(scores), for labels y that shall pass for true ones.

    Args:
        scores: The judge's score of every class, constant.
        drawn: One-hot rows, through which the gradient goes.
    """
    return F.softplus(-(at_least_float32(scores.detach()) * drawn).sum(1)).mean()


@methods.register("kdgan")
class KDGAN(Method):
    """Matches labels in the eyes of a discriminator, and a tutor that is trained with the student.

    min over c, t, max over d of E log d(x,y) + a E log(1-d(x,y_c)) + (1-a) E log(1-d(x,y_t)) plus
    b*KD_T(c, t) for the student c and g*KD_T(t, c) for the tutor t, with labels y_c and y_t drawn
    from either's softmax by straight-through Gumbel-softmax. The tutor begins as a copy of the
    teacher; the score of each label is a small network on the teacher's embedding.

    Wang, Zhang, Sun and Qi, *KDGAN: Knowledge Distillation with Generative Adversarial Networks*,
    NeurIPS 2018; a = 0.5, b = g = 1, T = 3 and Adam of the authors' code. Differences: c and t
    minimise -a log d(y_c) and -(1-a) log d(y_t), which do not saturate; the code trains a whole
    network as d, pretrains c on labels (here they stay beside, ce_weight), and takes squared
    differences of logits for KD. All three move in every step; with k > 1 c and t move in every
    k-th only (the code moves d twice as often) and make fewer updates than other methods do. Real
    rows only.
    """

    family = "adversarial"

    class Settings(BareSettings):
        """Weights, and how players move: a is share, b and g are those of the two KD terms."""

        ce_weight: float = Field(1.0, ge=0)
        share: float = Field(0.5, ge=0, le=1)
        student_kd_weight: float = Field(1.0, ge=0)
        tutor_kd_weight: float = Field(1.0, ge=0)
        temperature: float = Field(3.0, gt=0)
        tau: float = Field(1.0, gt=0, description="Of the Gumbel-softmax.")
        lr: float = Field(1e-3, gt=0, description="Adam's, of the discriminator.")
        tutor_lr: float = Field(1e-4, gt=0, description="Adam's; the tutor is trained already.")
        k: int = Field(1, ge=1, description="Steps of the discriminator for each of the others.")

    settings: Settings
    passes = student("logits"), teacher("embedding"), Pass("tutor", "tutor", LOGITS)
    roles: Mapping[str, Role] = {"tutor": Role(of="teacher", weights="copy")}
    rows = "real"
    unit = frozenset({"deceit", "student_kd"})
    needs = Needs(min_rows=1, one_process=True)

    @property
    def players(self) -> Mapping[str, Player]:
        """The student as the run says, the others with Adam."""
        own = self.settings

        def turn(step: int) -> bool:
            return step % own.k == own.k - 1

        return {
            "main": Player(turn=turn),
            "tutor": Player(("tutor",), {**ADAM, "lr": own.tutor_lr}, turn),
            "discriminator": Player(("method.discriminator",), {**ADAM, "lr": own.lr}),
        }

    def build(self, shapes: Shapes) -> None:
        """The discriminator."""
        (width,) = shapes.known.embedding
        hidden, scores = nn.Linear(width, width), nn.Linear(width, shapes.num_classes)
        self.discriminator = nn.Sequential(hidden, nn.ReLU(), scores)

    def terms(self, step: Step) -> Terms:
        """What each of the three minimises."""
        own, ours, theirs = self.settings, step.student.logits, step["tutor"].logits
        scores = self.discriminator(at_least_float32(step.teacher.embedding.detach()))
        drawn = drawn_labels(ours, own.tau), drawn_labels(theirs, own.tau)
        judged = judge_loss(scores, step.batch.targets, *drawn, own.share)
        student_kd = kl_divergence(ours, theirs, own.temperature)
        tutor_kd = kl_divergence(theirs, ours, own.temperature)
        return {
            "judged": Term(judged, by="discriminator"),
            "deceit": Term(deceit_loss(scores, drawn[0]), own.share),
            "student_kd": Term(student_kd, own.student_kd_weight),
            "tutor_deceit": Term(deceit_loss(scores, drawn[1]), 1 - own.share, "tutor"),
            "tutor_kd": Term(tutor_kd, own.tutor_kd_weight, "tutor"),
        }
