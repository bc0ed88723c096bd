"""Mixup: interpolated points with interpolated labels, the control without a teacher."""

from typing import ClassVar

from pydantic import Field

from fskd.methods.base import BareSettings, Method, methods


@methods.register("mixup")
class Mixup(Method):
    """Matches the labels of the real rows and interpolated labels of the generated rows.

    L = ce_weight*CE(s(x), y) + mixed_weight*sum_j w_j CE(s(x~), y_j)
    for x~ = sum_j w_j x_j. It sees the same points as ``kdplus``, with labels that are mixed
    instead of given by a teacher: the control that tells the two apart.

    Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018,
    arXiv 1710.09412. The paper trains on mixed rows only; here real rows are kept beside them
    (ce_weight 0 gives the paper's loss).
    """

    family = "mixing"

    class Settings(BareSettings):
        """The objective's weights."""

        ce_weight: float = Field(1.0, ge=0)
        mixed_weight: float = Field(1.0, ge=0)

    default_generator: ClassVar[str | None] = "mixup"
