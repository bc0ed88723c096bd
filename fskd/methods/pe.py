"""Personalized education: KD+ with patch-wise mixes from where the student is blind."""

from collections.abc import Mapping
from typing import Any, ClassVar

from fskd.methods.base import methods
from fskd.methods.kdplus import KDPlus


@methods.register("pe")
class PE(KDPlus):
    """Steps on real rows and steps on searched patch-wise mixes take turns at random.

    With probability ``generator.real_probability`` (0.3) a step is
    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)), weights 0.1 and 0.9, else
    L = generated_weight*KD_T(s(x~), t(x~)), weight 1; T = 4. The x~ are MixPatch points, whose
    alpha and patch side are chosen anew every 50 epochs (see the generator ``blind_mixpatch``).
    Training is 1/0.3 times as long as the budget says (``generator.scale_epochs``), so that its
    real steps are as many as KD's; ``protocols/pe.yaml`` has KD of as many steps beside it. Another
    generator that is named comes with its own settings, not with these.

    Deng, Zheng and Zhang, *Personalized Education: Blind Knowledge Distillation*, ECCV 2022,
    doi 10.1007/978-3-031-19830-4_16; the successor of KD+, of which it is a preset. Differences:
    patch sides are in relation to the image; of the optimiser only the weight decay, 1e-4, is the
    paper's (lr 0.05 with drops after 62.5, 75 and 87.5 % of 240 epochs can be set); the published
    probability is 0.1 with ShuffleNet students and 0.5 on ImageNet; the search begins at alpha 1
    whichever the networks.
    """

    default_generator: ClassVar[str | None] = "blind_mixpatch"
    defaults: ClassVar[Mapping[str, Any]] = {
        "generator": {"when": "alternate", "real_probability": 0.3, "scale_epochs": True},
        "optim": {"weight_decay": 1e-4},
    }
