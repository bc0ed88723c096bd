"""TAKD: teacher assistants of medium size between teacher and student."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from fskd.errors import SettingError
from fskd.methods.base import MethodSettings, methods
from fskd.models.catalog import build, models
from fskd.procedures.base import Procedure

SETTING = "method.assistants"


def medium(teacher: str, student: str) -> str:
    """The network of the zoo, of the family of both, nearest to the middle of their sizes.

    The middle is the geometric mean of their numbers of parameters.

    Args:
        teacher: Name of a network of the zoo.
        student: Name of another one.

    Raises:
        SettingError: If they are of two families or nothing lies between them.

    Example:
        >>> medium("resnet56", "resnet20"), medium("cnn_small", "cnn_tiny")
        ('resnet32', 'cnn_medium')
    """
    family = re.match(r"[a-z]+", student)
    known = [name for name in models.names() if family and name.startswith(family[0])]
    sizes = {name: _size(name) for name in known} if {teacher, student} <= set(known) else {}
    low, high = sizes.get(student, 0), sizes.get(teacher, 0)
    inside = [name for name, size in sizes.items() if low < size < high]
    if not inside:
        accepted = "names of networks joined by commas, the largest first"
        raise SettingError(SETTING, f"'auto' between {teacher} and {student}", accepted)
    return min(inside, key=lambda name: abs(math.log(sizes[name] ** 2 / (low * high))))


def _size(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, num_classes=10).parameters())


@methods.register("takd")
class TAKD(Procedure):
    """KD from a teacher assistant, which was distilled from the teacher (or a larger assistant).

    Each hop: L = ce_weight*CE(s(x), y) + kd_weight*T^2*KL(softmax(t/T) || softmax(s/T)), batch
    means over rows (B, K), with the settings, examples and updates of the run.

    Mirzadeh, Farajtabar, Li, Levine, Matsukawa and Ghasemzadeh, *Improved Knowledge Distillation
    via Teacher Assistant*, AAAI 2020, arXiv 1902.03393. Differences: the public code's KL is a mean
    over rows and classes, K times smaller (kd_weight/K gives its balance), it keeps the epoch that
    is best on test, and weights and temperature are searched for every hop. ``auto`` takes one
    assistant, nearest to the geometric mean of the sizes. The assistants' updates come on top of
    the student's; other links are what a protocol's ``chain`` is for.
    """

    class Settings(MethodSettings):
        """The assistants, and the objective of every hop."""

        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, gt=0)
        assistants: str = Field("auto", description="Networks, the largest first: a,b.")

    settings: Settings
    family = "chains"
    example: ClassVar[Mapping[str, Any]] = {"student": "cnn_tiny"}

    @property
    def hop(self) -> Mapping[str, Any]:
        """KD with the same weights and temperature."""
        return {"name": "kd", **self.settings.model_dump(exclude={"assistants"})}

    def links(self, teacher: str, student: str) -> Sequence[str]:
        """The assistants."""
        if self.settings.assistants == "auto":
            return (medium(teacher, student),)
        return tuple(name.strip() for name in self.settings.assistants.split(","))
