"""LIT: each section of the student learns to continue what the teacher began."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import at_least_float32
from fskd.methods.base import BareSettings, Method, Step, methods, require
from fskd.methods.objective import Objective
from fskd.methods.words import Needs, Pass, Role, Term, Terms, student, teacher
from fskd.types import Shapes

STAGES = frozenset({"stages"})


def section_loss(sections: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over stages of the mean squared difference.

    Args:
        sections: Maps that each section of the student made of the teacher's map before it.
        teacher: The teacher's maps of the same shapes, treated as constant.
    """
    pairs = zip(sections, teacher, strict=True)
    pairs_32 = ((at_least_float32(s), at_least_float32(t.detach())) for s, t in pairs)
    return torch.stack([F.mse_loss(s, t) for s, t in pairs_32]).sum()


@methods.register("lit")
class LIT(Method):
    """Matches each stage of the student, fed with the teacher's map before it, to the teacher's.

    L = [beta*((1-alpha)*KD_T + alpha*CE) + (1-beta) * sum_l mean (S_l(F_t,l-1) - F_t,l)^2] / 2,
    with S_l the student's section from one stage to the next, the first behind the stem. Alpha
    weighs the labels.

    Koratana et al., *LIT: Learned Intermediate Representation Training for Model Compression*, ICML
    2019, arXiv 1810.01937; defaults of the authors' code for CIFAR-10. Its soft cross-entropy
    differs from KD_T by the teacher's entropy, a constant without gradient. Stem and classifier are
    not copied from the teacher and there is no second phase of KD alone. The sections are the
    student itself, so its batch norms see the teacher's maps, too. Generated rows enter the
    sections' term only.
    """

    family = "features"

    class Settings(BareSettings):
        """Shares of labels (alpha) and of logits (beta)."""

        alpha: float = Field(0.95, ge=0, le=1)
        beta: float = Field(0.75, ge=0, le=1)
        temperature: float = Field(6.0, gt=0)

        def objective(self) -> Objective:
            """Labels and soft targets of the images of the data."""
            hard, soft = self.alpha * self.beta / 2, (1 - self.alpha) * self.beta / 2
            return Objective(hard, soft, 0.0, temperature=self.temperature)

    settings: Settings
    passes: Sequence[Pass] = (student("logits"), teacher("stem", "stages"))
    roles: Mapping[str, Role] = {}
    needs = Needs(equal_channels=True)

    def build(self, shapes: Shapes) -> None:
        """A section for each stage, and what it is fed with."""
        ours, theirs = ((net.stem, *net.stages) for net in (shapes.student, shapes.known))
        require(ours == theirs, "lit", f"maps of {ours} and {theirs}", "equal stem and stages")
        n = len(shapes.student.stages)
        starts: list[int | Literal["stem"]] = ["stem", *range(n - 1)]
        self.roles = {
            f"section{i}": Role(weights="shared", after=start, upto=i)
            for i, start in enumerate(starts)
        }
        fed = ["teacher.stem", *(f"teacher.stages.{i}" for i in range(n - 1))]
        own = [Pass(name, name, STAGES, on) for name, on in zip(self.roles, fed, strict=True)]
        self.passes = (*type(self).passes, *own)

    def terms(self, step: Step) -> Terms:
        """The sections."""
        made = [step[name].stages[0] for name in self.roles]
        return {"lit": Term(section_loss(made, step.teacher.stages), (1 - self.settings.beta) / 2)}
