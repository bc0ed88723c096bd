"""Tf-KD (self): the teacher is the student's own network, trained earlier."""

from pydantic import Field

from fskd.losses.targets import kl_divergence
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.objective import Objective
from fskd.methods.words import Needs, Term, Terms, student, teacher


@methods.register("tfkd_self")
class TfKDSelf(Method):
    """Matches a network of the student's own kind that was trained before on labels alone.

    L = (1-a)*CE(s, y) + a*multiplier*T^2/(B*K) * sum_bc p_bc (log p_bc - log q_bc), a = reg_weight,
    p = softmax(t/T), q = softmax(s/T) of logits (B, K).

    Yuan, Tay, Li, Wang and Feng, *Revisiting Knowledge Distillation via Label Smoothing
    Regularization*, CVPR 2020, arXiv 1909.11723. This is the loss; the earlier copy is the run's
    teacher, a run of its own as all teachers are: name the student's network as the teacher, and
    let it see the same images (``teacher.data=subset``), or it is no self-teacher. As in the
    authors' code, not the paper, the divergence is averaged over classes too, hence the multiplier
    (1 for MobileNetV2 and ShuffleNetV2; 50, with T = 6, for ResNet18). It is written as KD_T with
    weight a*multiplier/K, which enters the divisor of the total. Generated rows are used like real
    ones.
    """

    family = "logits"

    class Settings(BareSettings):
        """``reg_weight`` is the published a; labels get 1 - a."""

        reg_weight: float = Field(0.95, ge=0, lt=1)
        multiplier: float = Field(1.0, ge=0)
        temperature: float = Field(20.0, gt=0)

        def objective(self) -> Objective:
            """Labels with weight 1 - a; the temperature is that of the own term."""
            return Objective(ce_weight=1 - self.reg_weight)

    settings: Settings
    passes = student("logits"), teacher("logits")
    unit = frozenset({"tfkd_self"})
    needs = Needs(min_rows=1)

    def terms(self, step: Step) -> Terms:
        """The self-teacher's term."""
        own, logits = self.settings, step.student.logits
        loss = kl_divergence(logits, step.teacher.logits, own.temperature)
        return {"tfkd_self": Term(loss, own.reg_weight * own.multiplier / logits.shape[1])}
