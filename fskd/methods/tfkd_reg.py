"""Tf-KD (regularisation): a hand-made teacher that is right with a fixed probability."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import at_least_float32
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.objective import Objective
from fskd.methods.words import Needs, Term, Terms, student


def virtual_teacher_kl(
    student: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"],
    temperature: float = 40.0,
    correct_prob: float = 0.99,
) -> Float[Tensor, ""]:
    """KL from a hand-made teacher, averaged over rows and classes.

    The teacher's probabilities u (correct_prob on the label, the rest spread over the others) are
    divided by the temperature and passed through softmax again; the student stays at temperature 1
    and there is no factor temperature^2.

    Args:
        student: Logits, at least two classes.
        targets: Classes in [0, K).
        temperature: Of the teacher, > 0.
        correct_prob: Teacher's probability of the label.

    Returns:
        1/(B*K) sum_bc p_bc (log p_bc - log q_bc) with p = softmax(u/T), q = softmax(s).
    """
    log_q = F.log_softmax(at_least_float32(student), dim=1)
    wrong_prob = (1 - correct_prob) / (log_q.shape[1] - 1)
    probs = torch.full_like(log_q, wrong_prob).scatter(1, targets.unsqueeze(1), correct_prob)
    log_p = F.log_softmax(probs / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).mean()


@methods.register("tfkd_reg")
class TfKDReg(Method):
    """Matches a hand-made teacher that gives the label a fixed probability; no teacher network.

    L = (1-a)*CE(s, y) + a*multiplier*mean_bc [p (log p - log q)], a = reg_weight, p = softmax(u/T),
    q = softmax(s), u = correct_prob on the label and the rest spread evenly.

    Yuan, Tay, Li, Wang and Feng, *Revisiting Knowledge Distillation via Label Smoothing
    Regularization*, CVPR 2020, arXiv 1909.11723. As in the authors' code, not the paper: softmax is
    applied to probabilities (at T = 40 the teacher is nearly uniform), the student is not tempered,
    and the mean is over classes too, hence the multiplier.
    """

    family = "logits"

    class Settings(BareSettings):
        """``reg_weight`` is the published a; labels get 1 - a."""

        reg_weight: float = Field(0.95, ge=0, lt=1)
        multiplier: float = Field(1.0, ge=0)
        temperature: float = Field(40.0, gt=0)
        correct_prob: float = Field(0.99, gt=0, lt=1)

        def objective(self) -> Objective:
            """Labels with weight 1 - a; the temperature is that of the virtual teacher."""
            return Objective(ce_weight=1 - self.reg_weight)

    settings: Settings
    passes = (student("logits"),)
    rows = "real"
    needs = Needs(min_rows=1)

    def terms(self, step: Step) -> Terms:
        """The virtual teacher's term."""
        own = self.settings
        loss = virtual_teacher_kl(
            step.student.logits, step.batch.targets, own.temperature, own.correct_prob
        )
        return {"tfkd_reg": Term(loss, own.reg_weight * own.multiplier)}
