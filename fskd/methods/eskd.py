"""ESKD: the teacher is followed for a part of training only, and is stopped early itself."""

from collections.abc import Sequence

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods
from fskd.methods.words import Phase


@methods.register("eskd")
class ESKD(Method):
    """Matches the teacher as KD does until a share of training is over, then the labels alone.

    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)) before ``stop``, CE(s(x), y) after it;
    weights are divided by their sum, so labels count fully then.

    Cho and Hariharan, *On the Efficacy of Knowledge Distillation*, ICCV 2019, arXiv 1910.01348.
    Learning rate and momentum go on where the teacher is left, which is not asked any more, nor are
    rows generated. ``stop`` was chosen by validation in the paper; the default of a half is ours.
    The other half of the method is a teacher that is stopped early: a short ``teacher.budget``, a
    sixth to a third of the usual one (35 to 65 of 200 epochs), over which its learning rate falls
    to the end, as it should. It is not set here, so that arms share their teacher unless told
    otherwise.
    """

    family = "logits"

    class Settings(MethodSettings):
        """The objective's weights, and when the teacher is left."""

        ce_weight: float = Field(0.1, gt=0)
        kd_weight: float = Field(0.9, ge=0)
        stop: float = Field(0.5, gt=0, lt=1, description="Share of training with the teacher.")

    settings: Settings

    @property
    def phases(self) -> Sequence[Phase]:
        """With the teacher, and without."""
        stop = self.settings.stop
        return (
            Phase("followed", stop),
            Phase(share=1 - stop, objective=frozenset({"ce"}), restart=False),
        )
