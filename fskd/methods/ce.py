"""CE: training on the labels alone, the baseline without a teacher."""

from pydantic import Field

from fskd.methods.base import BareSettings, Method, methods


@methods.register("ce")
class CE(Method):
    """Matches the labels only; the baseline without a teacher, optionally with label smoothing.

    L = CE(s(x), y), with the target 1-e on the label and e/(K-1) on the other classes for
    e = label_smoothing.

    Smoothing is that of Szegedy et al., CVPR 2016, arXiv 1512.00567. As in Yuan et al., CVPR 2020,
    arXiv 1909.11723, e is spread over the K-1 wrong classes, not over all K.
    """

    family = "control"

    class Settings(BareSettings):
        """The objective's smoothing."""

        label_smoothing: float = Field(0.0, ge=0, lt=1)
