"""FT: the student is translated into factors that paraphrase the teacher."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import attention_map, pool_to_match
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Phase, Term, Terms, student, teacher
from fskd.types import Shapes

SLOPE = 0.1
Distance = Literal["l1", "mse"]


def distance(guess: Tensor, goal: Tensor, kind: Distance) -> Float[Tensor, ""]:
    """Mean of the absolute or of the squared difference; the goal is treated as constant."""
    loss = F.l1_loss if kind == "l1" else F.mse_loss
    return loss(at_least_float32(guess), at_least_float32(goal.detach()))


def factor_loss(
    student: Float[Tensor, "batch channels height_1 width_1"],
    teacher: Float[Tensor, "batch channels height_2 width_2"],
    factor: Literal["whole", "attention"] = "whole",
    kind: Distance = "l1",
) -> Float[Tensor, ""]:
    """Mean difference of factors of unit length, the larger one pooled to the smaller first.

    Args:
        student: What the translator gave.
        teacher: What the paraphraser gave, treated as constant.
        factor: All entries of a row as one vector, or the channel mean of their squares.
        kind: Absolute or squared difference.
    """
    maps = pool_to_match(student, teacher.detach())
    if factor == "attention":
        ours, theirs = (attention_map(one) for one in maps)
    else:
        ours, theirs = (F.normalize(one.flatten(1), dim=1) for one in maps)
    return distance(ours, theirs, kind)


def layers(*widths: int, up: bool = False, norm: bool = False) -> nn.Sequential:
    """3x3 convolutions (transposed if ``up``), each with batch norm if asked and leaky ReLU."""
    found: list[nn.Module] = []
    conv = nn.ConvTranspose2d if up else nn.Conv2d
    for c_in, c_out in pairwise(widths):
        found.append(conv(c_in, c_out, kernel_size=3, padding=1))
        if norm:
            found.append(nn.BatchNorm2d(c_out))
        found.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*found)


class Paraphraser(nn.Module):
    """Autoencoder of the teacher's maps, (rows, C, H, W) -> (rows, k, H, W) -> (rows, C, H, W)."""

    def __init__(self, c_t: int, k: int) -> None:
        super().__init__()
        self.encoder = layers(c_t, c_t, k, k)
        self.decoder = layers(k, k, c_t, c_t, up=True)

    def forward(self, maps: Tensor) -> Tensor:
        """What is made of maps again."""
        out: Tensor = self.decoder(self.encoder(maps))
        return out


@methods.register("ft")
class FT(Method):
    """Matches factors: a paraphrase of the teacher's last maps, and the student's translation.

    Phase ``paraphraser``: L = mean abs(P(F_t) - F_t) trains an autoencoder P of the teacher's last
    maps with k = factor_ratio * C_t channels in its middle, the factor. Phase ``main``:
    L = ce_weight*CE + weight * mean abs(f_s/norm(f_s) - f_t/norm(f_t)) + kd_weight*KD_T with f_t
    P's factor, now frozen, and f_s = T(F_s) the translator's, which is trained with the student.
    Three 3x3 convolutions with leaky ReLU each; the translator has batch normalisation.

    Kim, Park and Kwak, *Paraphrasing Complex Network: Network Compression via Factor Transfer*,
    NeurIPS 2018, arXiv 1802.04977; the defaults are the authors' (whole factors, absolute
    differences, weight 500). What the CRD benchmark (Tian et al., ICLR 2020) calls FT is
    ``factor=attention``, ``reconstruction=mse`` and ``weight=200``. As there, the first phase has a
    fifth of the learning rate (0.01 beside 0.05) and 30 epochs before 240. Larger factors are
    pooled to the size of the other network's. Generated rows are used like real ones. With a single
    value per channel (one row of a 1x1 map) batch normalisation is undefined, and the term of the
    main phase is left out.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight, form of the factors, and the paraphraser's phase."""

        weight: float = Field(500.0, ge=0)
        factor_ratio: float = Field(0.5, gt=0, description="Channels of a factor / C_t.")
        factor: Literal["whole", "attention"] = "whole"
        distance: Distance = "l1"
        reconstruction: Distance = "l1"
        paraphraser_share: float = Field(30 / 240, gt=0)
        paraphraser_lr_scale: float = Field(0.2, gt=0)

    settings: Settings
    passes = student("stages"), teacher("stages")
    needs = Needs(stages=1)

    @property
    def phases(self) -> Sequence[Phase]:
        """The paraphraser, then the student."""
        first = Phase(
            name="paraphraser",
            share=self.settings.paraphraser_share,
            trains=("method.paraphraser",),
            passes=(teacher("stages"),),
            terms="paraphrase",
            objective=frozenset(),
            lr_scale=self.settings.paraphraser_lr_scale,
        )
        return first, Phase(trains=("student", "method.translator"))

    def build(self, shapes: Shapes) -> None:
        """Paraphraser and translator of the last stages."""
        c_s, c_t = shapes.student.stages[-1][0], shapes.known.stages[-1][0]
        k = max(1, int(c_t * self.settings.factor_ratio))
        self.paraphraser = Paraphraser(c_t, k)
        self.translator = layers(c_s, c_s, k, k, norm=True)

    def paraphrase(self, step: Step) -> Terms:
        """The term of the first phase."""
        maps = at_least_float32(step.teacher.stages[-1].detach())
        again = self.paraphraser(maps)
        return {"paraphraser": Term(distance(again, maps, self.settings.reconstruction))}

    def terms(self, step: Step) -> Terms:
        """The factors."""
        own, ours = self.settings, at_least_float32(step.student.stages[-1])
        if ours[:, 0].numel() < 2:
            return {}
        goal = self.paraphraser.encoder(at_least_float32(step.teacher.stages[-1].detach()))
        loss = factor_loss(self.translator(ours), goal, own.factor, own.distance)
        return {"ft": Term(loss, own.weight)}
