"""LS: smoothed labels, the control for soft targets without a teacher."""

from pydantic import Field

from fskd.methods.base import BareSettings, Method, methods


@methods.register("ls")
class LS(Method):
    """Matches smoothed labels: what soft targets do that know nothing of the image; no teacher.

    L = -mean_b sum_c u_bc log softmax(s_b)_c for logits s (rows, K), with u = 1-e on the label and
    e/(K-1) on the other classes, e = label_smoothing.

    Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016, arXiv
    1512.00567; with e = 0.1 on the wrong classes as the control of Yuan et al., *Revisiting
    Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020, arXiv 1909.11723 (Szegedy
    et al. spread it over all K). It is ``ce`` with that setting, under a name of its own.
    At most a half is smoothed, where two classes are alike.
    """

    family = "control"

    class Settings(BareSettings):
        """The objective's smoothing."""

        label_smoothing: float = Field(0.1, ge=0, le=0.5)
