"""Mixup KD: mixup with a teacher, which labels the mixed points beside their mixed labels."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods


@methods.register("mixupkd")
class MixupKD(Method):
    """Matches the teacher and the mixed labels on mixed points, in the place of real rows.

    L = mixed_weight * mean_b (l_b CE(s(x~_b), y_i) + (1-l_b) CE(s(x~_b), y_j)) + kd_weight *
    KD_T(s(x~), t(x~)) with x~ = l*x_i + (1-l)*x_j, l ~ Beta(1, 1) once a batch; a preset of the
    objective and the generator ``mixup`` with ``generator.share`` 1. Where real rows are asked for,
    they have KD's terms. ``kdplus`` keeps them by default, and never mixes labels.

    Das et al., *An Empirical Analysis of the Impact of Data Augmentation on Knowledge
    Distillation*, 2020, arXiv 2006.03810, who study mixup (Zhang et al., ICLR 2018, arXiv
    1710.09412) under a teacher. The weights of 0.1 and 0.9 and T = 4 are KD's, not the paper's.
    """

    family = "mixing"

    class Settings(MethodSettings):
        """The objective's weights."""

        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        mixed_weight: float = Field(0.1, ge=0)

    default_generator: ClassVar[str | None] = "mixup"
    defaults: ClassVar[Mapping[str, Any]] = {
        "generator": {"share": 1.0, "lam": "beta", "lam_per": "batch"}
    }
