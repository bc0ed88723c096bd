"""ReviewKD: every level of the student, with all deeper ones, predicts the teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.types import Shapes, TapShapes

Sizes = tuple[tuple[int, ...], ...]
POOLS = (4, 2, 1)


def context_loss(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Mean squares of the maps and, at half the weight each time, of their means on coarser grids.

    Grids of 4x4, 2x2 and 1x1 that are not smaller than the map are passed over, and do not halve
    the weight. The sum is divided by that of the weights.

    Args:
        student: Maps.
        teacher: Maps of the same shape, treated as constant.
    """
    ours, goal = at_least_float32(student), at_least_float32(teacher.detach())
    loss, weight, total = F.mse_loss(ours, goal), 1.0, 1.0
    for size in POOLS:
        if size < ours.shape[2]:
            weight /= 2
            total += weight
            coarse, aim = (F.adaptive_avg_pool2d(one, size) for one in (ours, goal))
            loss = loss + weight * F.mse_loss(coarse, aim)
    return loss / total


class Fusion(nn.Module):
    """One level: the student's map and what came from deeper ones -> a guess at the teacher's.

    Args:
        student: (C, H, W) of the student's map.
        teacher: (C, H, W) of the teacher's map.
        mid: Width of what is handed on.
        deepest: Whether there is nothing deeper.
    """

    def __init__(
        self, student: tuple[int, ...], teacher: tuple[int, ...], mid: int, deepest: bool
    ) -> None:
        super().__init__()
        self.size = teacher[1:]
        conv = nn.Conv2d(student[0], mid, 1, bias=False)
        self.conv1 = nn.Sequential(conv, nn.BatchNorm2d(mid))
        last = nn.Conv2d(mid, teacher[0], 3, padding=1, bias=False)
        self.conv2 = nn.Sequential(last, nn.BatchNorm2d(teacher[0]))
        for one in (conv, last):
            nn.init.kaiming_uniform_(one.weight, a=1)
        self.attention = None if deepest else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The guess, and what is handed on to the next shallower level."""
        x = self.conv1(at_least_float32(x))
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            shares = self.attention(torch.cat([x, deeper], 1)).sigmoid()
            x = x * shares[:, :1] + deeper * shares[:, 1:]
        x = F.interpolate(x, self.size)
        return self.conv2(x), x


@methods.register("reviewkd")
class ReviewKD(Method):
    """Reviews earlier levels: each, fused with all deeper ones, predicts the teacher's.

    L = ce_weight*CE + weight * r * sum_l HCL(g_l, F_t,l) + kd_weight*KD_T over the stages (behind
    the activation in the student, before it in the teacher) and the embedding as a map of 1x1. From
    deep to shallow, x = BN(conv1x1(F_s,l)), h_l = a1*x + a2*h_l+1 with maps a = sigmoid(conv1x1([x;
    h_l+1])), g_l = BN(conv3x3(h_l)), resized by nearest neighbours; HCL is ``context_loss``; r
    rises from 0 to 1 in the first part of training. In between, min(512, student's embedding) wide.

    Chen, Liu, Zhao and Jia, *Distilling Knowledge via Knowledge Review*, CVPR 2021, arXiv
    2104.09044, as in the authors' and mdistiller's code. Their weight is chosen for each pair of
    networks, from 0.6 (resnet56 to resnet20) to 8; 1 is that of resnet110 to resnet32. Sizes come
    from the networks instead of tables. Generated rows are used like real ones. With one row the
    batch normalisation of the 1x1 map is undefined, and the term is left out.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight, share of training in which it rises (20 of 240 epochs), and greatest width."""

        weight: float = Field(1.0, ge=0)
        warmup: float = Field(20 / 240, ge=0, le=1)
        max_width: int = Field(512, ge=1)

    settings: Settings
    passes = student("stages", "embedding"), teacher("pre", "embedding")
    needs = Needs(stages=1, equal_stages=True, min_rows=2)

    def build(self, shapes: Shapes) -> None:
        """A fusion for each level, the deepest first."""

        def levels(net: TapShapes, stages: Sizes) -> Sizes:
            return ((net.embedding[0], 1, 1), *reversed(stages))

        ours = levels(shapes.student, shapes.student.stages)
        theirs = levels(shapes.known, shapes.known.pre)
        mid = min(self.settings.max_width, ours[0][0])
        pairs = enumerate(zip(ours, theirs, strict=True))
        self.levels = nn.ModuleList(Fusion(s, t, mid, i == 0) for i, (s, t) in pairs)

    def review(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Sum over levels of ``context_loss``.

        Args:
            student: Maps of each level, the deepest first.
            teacher: The same of the teacher.
        """
        deeper, found = None, []
        for level, s, t in zip(self.levels, student, teacher, strict=True):
            guess, deeper = level(s, deeper)
            found.append(context_loss(guess, t))
        return torch.stack(found).sum()

    def terms(self, step: Step) -> Terms:
        """The review, at the weight of this moment."""
        own, ours, theirs = self.settings, step.student, step.teacher
        pooled = [one.embedding[..., None, None] for one in (ours, theirs)]
        loss = self.review([pooled[0], *ours.stages[::-1]], [pooled[1], *theirs.pre[::-1]])
        ramp = min(step.progress.fraction / own.warmup, 1.0) if own.warmup else 1.0
        return {"reviewkd": Term(loss, own.weight * ramp)}
