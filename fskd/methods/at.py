"""AT: the student looks where the teacher looks."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import attention_map, pool_to_match
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


def attention_transfer(
    student: Sequence[Tensor], teacher: Sequence[Tensor], power: float = 2.0
) -> Float[Tensor, ""]:
    """Sum over stages of the mean squared difference of attention maps.

    Args:
        student: Maps (rows, C_l, H_l, W_l) of each stage.
        teacher: Maps of the same stages; channels and sizes may differ. Treated as constant.
        power: Exponent of the activations, at least 1.

    Returns:
        sum_l mean over rows and pixels of (a(F_s) - a(F_t))^2, where the larger map of a stage is
        pooled to the smaller first.
    """
    terms = []
    for maps_s, maps_t in zip(student, teacher, strict=True):
        pooled_s, pooled_t = pool_to_match(maps_s, maps_t.detach())
        terms.append(F.mse_loss(attention_map(pooled_s, power), attention_map(pooled_t, power)))
    return sum(terms[1:], terms[0])


@methods.register("at")
class AT(Method):
    """Matches attention maps, the channel mean of the squared activations, at every stage.

    L = ce_weight*CE + weight * sum_l mean (a(F_s,l) - a(F_t,l))^2 + kd_weight*KD_T, where
    a(F) = v / norm(v), v = mean_c abs(F_c)^power, for all stages but the stem.

    Zagoruyko and Komodakis, *Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer*, ICLR 2017, arXiv 1612.03928. As in the
    authors' code the squared difference is averaged over rows and pixels (the paper sums unsquared
    norms), which is what the weight of 1000 belongs to. Generated rows are used like real ones.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight and power of the attention maps."""

        weight: float = Field(1000.0, ge=0)
        power: float = Field(2.0, ge=1)

    settings: Settings
    passes = student("stages"), teacher("stages")
    needs = Needs(stages=1, equal_stages=True)

    def terms(self, step: Step) -> Terms:
        """The attention term."""
        own = self.settings
        loss = attention_transfer(step.student.stages, step.teacher.stages, own.power)
        return {"at": Term(loss, own.weight)}
