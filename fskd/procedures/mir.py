"""MiR: a student cut from its teacher learns the map that the teacher's head reads."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import nn

from fskd.methods.base import MethodSettings, Step, methods, require
from fskd.methods.words import Phase, Term, Terms, student, teacher
from fskd.models.cut import check_cut, cut
from fskd.models.modes import in_mode
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands, Procedure
from fskd.procedures.mimic import OPTIM, mimic_loss
from fskd.types import Outputs, Shapes


@methods.register("mir")
class MiR(Procedure):
    """Cuts the student from its teacher; all but the head learns the teacher's last map.

    L = weight * mean (F_s - F_t)^2 + ce_weight*CE + kd_weight*KD_T, F in R^(rows x C x H x W) the
    last map before pooling, after its ReLU. The student gets the teacher's first blocks of each
    stage, channels of largest L1 norm, and its head, which is frozen. By default no labels.

    Wang, Liu, Ma, Yong, Chai and Wu, *Compressing Models with Few Samples:
    Mimicking then Replacing*, CVPR 2022, arXiv 2201.02620; optimiser of the authors' later code
    (of PRACTISE), whose 2000 updates of 64 images are left to the run. Differences: students are
    other networks of the family instead of pruned ones. Batch norms are trained with batch
    statistics. The student's initial weights are replaced. Generated rows are used like real ones.
    """

    class Settings(MethodSettings):
        """Weights of the maps, and of labels and soft targets besides."""

        weight: float = Field(1.0, gt=0)
        ce_weight: float = Field(0.0, ge=0)
        kd_weight: float = Field(0.0, ge=0)

    settings: Settings
    family = "few-sample"
    passes = student("pre"), teacher("pre")
    phases = (Phase(trains=("student.features",)),)
    defaults: ClassVar[Mapping[str, Any]] = {"optim": OPTIM}

    def build(self, shapes: Shapes) -> None:
        """Makes sure that the last maps are alike."""
        ours, theirs = (net.pre[-1:] for net in (shapes.student, shapes.known))
        given = f"a student whose last map is {_text(ours)} and a teacher with {_text(theirs)}"
        require(bool(ours) and ours == theirs, "mir", given, "last maps of equal width and size")

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        """The student is a part of the teacher, and its head begins with pooling."""
        check_cut(student, teacher, size)
        require(
            _pools(student, size),
            "mir",
            f"'{type(student.net).__name__}' (its last map is not what is pooled)",
            "a network whose last map goes through a ReLU, is averaged and classified",
        )

    def run(self, hands: Hands) -> None:
        """Cuts, then the ordinary loop."""
        lines = cut(hands.student, cast(FeatureNet, hands.teacher.net), hands.size)
        hands.say(f"student: {', '.join(lines)}, from the teacher")
        hands.note("cut", lines)
        hands.train()

    def terms(self, step: Step) -> Terms:
        """The last maps."""
        loss = mimic_loss(step.student, step.teacher)
        return {"mir": Term(loss, self.settings.weight)}


@torch.no_grad()
def _pools(net: FeatureNet, size: tuple[int, int, int]) -> bool:
    first = next(net.parameters())
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(first)
    with in_mode(net, "eval"):
        out = cast(Outputs, net(images, frozenset({"pre", "embedding"})))
    pooled, embedding = out.pre[-1].relu().mean((2, 3)), out.embedding
    return pooled.shape == embedding.shape and torch.allclose(pooled, embedding, atol=1e-5)


def _text(maps: tuple[tuple[int, ...], ...]) -> str:
    return "x".join(map(str, maps[0])) if maps else "none"
