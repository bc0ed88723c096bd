"""Logit regression: the teacher's logits in the mean square."""

from pydantic import Field

from fskd.losses.targets import logits_mse
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


@methods.register("logits_mse")
class LogitsMSE(Method):
    """Matches the teacher's logits in the mean square; labels are not used.

    L = weight * mean_bc (s_bc - t_bc)^2 + ce_weight*CE + kd_weight*KD_T for logits s, t (rows, K).

    Ba and Caruana, *Do Deep Nets Really Need to be Deep?*, NeurIPS 2014, arXiv 1312.6184. The paper
    halves the sum over classes; here, as in common code, it is the mean over rows and classes, and
    there is no temperature. Rows are the paper's whether they have labels or not, so generated and
    unlabelled rows are used like real ones. Logits that are known but for a constant in each row,
    such as a black box's, will not do.
    """

    family = "logits"

    class Settings(MethodSettings):
        """Weight of the squares."""

        weight: float = Field(1.0, ge=0)
        ce_weight: float = Field(0.0, ge=0)

    settings: Settings
    passes = student("logits"), teacher("logits")
    needs = Needs(exact_logits=True)

    def terms(self, step: Step) -> Terms:
        """The mean square."""
        loss = logits_mse(step.student.logits, step.teacher.logits)
        return {"logits": Term(loss, self.settings.weight)}
