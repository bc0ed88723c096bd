"""DKD: the label against the rest, and the rest among themselves, with weights of their own."""

from pydantic import Field

from fskd.losses.divergences import dkd_loss
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


@methods.register("dkd")
class DKD(Method):
    """Matches how sure the teacher is of the label, and apart from it how it ranks the others.

    L = ce_weight*CE + r * T^2 * mean_b (target_weight*KL([p_y, 1-p_y] || [q_y, 1-q_y])
    + non_target_weight*KL(p^ || q^)) + kd_weight*KD_T, with p = softmax(t/T), q = softmax(s/T) of
    logits (rows, K), p^ and q^ the same without the label y, and r = min(done/warmup, 1).

    Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, arXiv 2203.08679. Weights are
    those for resnet32x4; the authors take a ``non_target_weight`` of 6 for vgg13 and wide resnets,
    2 for resnet56 and resnet110. Differences: r rises in every step from 0, over the published 20
    of 240 epochs, where the authors' code has stairs of an epoch; the label is taken out exactly,
    so large logits stay exact; both terms enter the divisor of the total, as KD's does. Real rows
    only, since labels are needed; with two classes the second term is 0.
    """

    family = "logits"

    class Settings(MethodSettings):
        """alpha and beta of the paper, and the share of training in which their weight rises."""

        target_weight: float = Field(1.0, ge=0)
        non_target_weight: float = Field(8.0, ge=0)
        temperature: float = Field(4.0, gt=0, description="Of both terms, and of KD.")
        warmup: float = Field(20 / 240, ge=0, le=1, description="Share of training.")

    settings: Settings
    passes = student("logits"), teacher("logits")
    rows = "real"
    unit = frozenset({"dkd_target", "dkd_others"})
    needs = Needs(min_rows=1)

    def terms(self, step: Step) -> Terms:
        """Both divergences."""
        own, fraction = self.settings, step.progress.fraction
        ramp = min(fraction / own.warmup, 1.0) if own.warmup else 1.0
        given = step.student.logits, step.teacher.logits, step.batch.targets, own.temperature
        return {
            "dkd_target": Term(dkd_loss(*given, 1.0, 0.0), own.target_weight * ramp),
            "dkd_others": Term(dkd_loss(*given, 0.0, 1.0), own.non_target_weight * ramp),
        }
