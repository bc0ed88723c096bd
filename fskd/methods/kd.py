"""KD: the teacher's softened class probabilities as soft targets."""

from pydantic import Field

from fskd.methods.base import Method, MethodSettings, methods


@methods.register("kd")
class KD(Method):
    """Matches the teacher's softened class probabilities, and the labels.

    L = ce_weight*CE(s(x), y) + kd_weight*T^2*KL(softmax(t/T) || softmax(s/T)), batch means.

    Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, NIPS Deep Learning
    Workshop 2014, arXiv 1503.02531. Defaults are those of the CRD benchmark (Tian et al., ICLR
    2020). Where a generator adds rows, they carry the teacher's soft targets with the same weight,
    0.1*CE(x) + 0.9*KD(x) + 0.9*KD(x~), as in Wang et al., NeurIPS 2022, arXiv 2012.02909;
    ``kdplus`` has a weight of its own for them.
    """

    family = "logits"

    class Settings(MethodSettings):
        """The objective's weights."""

        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
