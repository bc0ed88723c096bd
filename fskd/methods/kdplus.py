"""KD+: distillation on the training points and on points interpolated between them."""

from typing import ClassVar

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods


@methods.register("kdplus")
class KDPlus(Method):
    """KD plus teacher-labelled points interpolated between two samples.

    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)) + generated_weight*KD_T(s(x~), t(x~))
    with x~ = lambda*x_i + (1-lambda)*x_j. The interpolated points carry the teacher's soft targets
    only, taken from its output at x~; labels are never mixed.

    Deng and Zhang, *Can Students Outperform Teachers in Knowledge Distillation based Model
    Compression?*, ICLR 2021 submission (OpenReview XZDeL25T12l). The paper's lambda distribution,
    pair rule and weights are not public; the defaults (lambda uniform per sample, any pair, weights
    0.1, 0.9 and 1, T = 4, one joint forward of real and mixed rows) are ours. Without a generator
    this is exactly ``kd``.
    """

    family = "mixing"

    class Settings(MethodSettings):
        """The objective's weights."""

        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        generated_weight: float = Field(1.0, ge=0)

    default_generator: ClassVar[str | None] = "mixup"
