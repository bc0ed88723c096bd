"""NST: the student's channels are distributed like the teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.features import full_precision, pool_to_match
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher


def mean_kernel(
    first: Float[Tensor, "batch channels_1 pixels"],
    second: Float[Tensor, "batch channels_2 pixels"],
) -> Float[Tensor, ""]:
    """Mean of (u.v)^2 over rows and all pairs of a channel of the first and one of the second.

    Args:
        first: Vectors over pixels, one for each channel.
        second: The same of other channels.
    """
    with full_precision(first):
        return torch.bmm(first, second.transpose(1, 2)).square().mean()


def selectivity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over stages of the squared maximum mean discrepancy between the sets of channels.

    Args:
        student: Maps (rows, C_l, H_l, W_l) of each stage.
        teacher: Maps of the same stages; channels and sizes may differ. Treated as constant.

    Returns:
        sum_l k(t, t) + k(s, s) - 2 k(s, t) with ``mean_kernel`` of the channels at unit length,
        where the larger map of a stage is pooled to the smaller first.
    """
    terms = []
    for maps in zip(student, teacher, strict=True):
        s, t = (F.normalize(one.flatten(2), dim=2) for one in pool_to_match(*maps))
        t = t.detach()
        terms.append(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t))
    return torch.stack(terms).sum()


@methods.register("nst")
class NST(Method):
    """Matches the distribution of channels, each a pattern over pixels, at every stage.

    L = ce_weight*CE + weight * sum_l MMD^2(F_s,l, F_t,l) + kd_weight*KD_T, where MMD^2 =
    mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over pairs of channels in R^(H*W) of unit length,
    with k(u, v) = (u.v)^2, for all stages but the stem.

    Huang and Wang, *Like What You Like: Knowledge Distill via Neuron Selectivity Transfer*, 2017,
    arXiv 1707.01219, with the polynomial kernel, which was the best of its three. The paper halves
    its weight of 50; here, as in the CRD benchmark (Tian et al., ICLR 2020), 50 is the factor
    itself. Products are made of channels, not of channels and pixels: the same numbers with less
    memory. Generated rows are used like real ones.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight of the sum over stages."""

        weight: float = Field(50.0, ge=0)

    settings: Settings
    passes = student("stages"), teacher("stages")
    needs = Needs(stages=1, equal_stages=True)

    def terms(self, step: Step) -> Terms:
        """The discrepancy."""
        loss = selectivity_loss(step.student.stages, step.teacher.stages)
        return {"nst": Term(loss, self.settings.weight)}
