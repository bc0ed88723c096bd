"""CutMix KD: distillation on the training points and on points with a pasted box."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods


@methods.register("cutmixkd")
class CutMixKD(Method):
    """Matches the teacher on real rows and on rows with a box of another one pasted in.

    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)) + generated_weight*KD_T(s(x~), t(x~)),
    x~ = x_i with a box of x_j, the box's sides sqrt(1-l) of the image's, l ~ Beta(1, 1), j != i; a
    preset of the objective and the generator ``cutmix`` with ``generator.pairs`` no_self. Labels
    are not mixed, the teacher labels x~ itself.

    Wang, Lohit, Jones and Fu, *What Makes a "Good" Data Augmentation in Knowledge Distillation: A
    Statistical Perspective*, NeurIPS 2022, arXiv 2012.02909, without its choice of the batches with
    the highest entropy (CutMixPick). Differences: l and box are drawn per row, not per batch; as
    everywhere, the total is divided by the weights, and generated rows count as student rows.
    """

    family = "mixing"

    class Settings(MethodSettings):
        """The objective's weights."""

        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        generated_weight: float = Field(0.9, ge=0)

    default_generator: ClassVar[str | None] = "cutmix"
    defaults: ClassVar[Mapping[str, Any]] = {"generator": {"pairs": "no_self"}}
