"""OFD: the student's maps before the activation follow the teacher's, where that matters."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.features import pool_to_match
from fskd.losses.margins import measured_margins, norm_margin
from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.types import Shapes, Tools

SCALE, PRE = 1e-3, frozenset({"pre"})


def partial_distance(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    margin: Float[Tensor, " channels"],
) -> Float[Tensor, ""]:
    """The sum of (s - t')^2 [s > t' or t' > 0] over elements / rows, with t' = max(t, margin).

    Where the teacher is silent, a student that is more so is right, too.

    Args:
        student: Maps before the activation.
        teacher: Maps before the activation, treated as constant.
        margin: What stands for the negative values of each channel.
    """
    ours = at_least_float32(student)
    goal = torch.maximum(at_least_float32(teacher.detach()), margin[:, None, None])
    return ((ours - goal).square() * ((ours > goal) | (goal > 0))).sum() / len(ours)


def overhaul_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """1e-3 * sum over stages of 2^-(n-1-l) * ``partial_distance``; the last stage counts most.

    Args:
        student: Maps of each stage behind its connector.
        teacher: The teacher's maps of the same shapes.
        margins: One vector for each stage.
    """
    found = [partial_distance(*one) for one in zip(student, teacher, margins, strict=True)]
    return SCALE * torch.stack([part / 2**i for i, part in enumerate(reversed(found))]).sum()


@methods.register("ofd")
class OFD(Method):
    """Matches the maps before the activation, but not how far below a margin silent channels are.

    L = ce_weight*CE + weight * 1e-3 * sum_l 2^-(n-1-l) * D_l + kd_weight*KD_T, with
    D = sum (c(F_s) - t')^2 [c(F_s) > t' or t' > 0] / B, t' = max(F_t, m), c a 1x1 convolution and
    batch normalisation, and m the mean of a channel's negative values: in closed form from the
    weight and bias of the batch norm before the activation, or, where there is none, measured on
    the training subset. The published factor 1e-3 is part of the term, not of ``weight``.

    Heo et al., *A Comprehensive Overhaul of Feature Distillation*, ICCV 2019, arXiv 1904.01866. As
    in the authors' code the teacher normalises by the batch; here its running statistics stay as
    they are. Larger maps are pooled to the size of the other network's. D is a sum over elements,
    so it grows with maps and widths. Generated rows are used like real ones. With a single value
    per channel (one row of a 1x1 map) batch normalisation is undefined, and the term is left out.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight beside the published 1e-3, which suits large networks; less for light ones."""

        weight: float = Field(1.0, ge=0)

    settings: Settings
    passes = student("pre"), teacher("pre", mode="batch")
    needs = Needs(equal_stages=True)

    def build(self, shapes: Shapes) -> None:
        """A connector for each stage, and margins, which are not known yet."""
        self.connectors = nn.ModuleList()
        for i, (s, t) in enumerate(zip(shapes.student.pre, shapes.known.pre, strict=True)):
            conv = nn.Conv2d(s[0], t[0], 1, bias=False)
            self.connectors.append(nn.Sequential(conv, nn.BatchNorm2d(t[0])))
            self.register_buffer(f"margin{i}", torch.zeros(t[0]))

    @property
    def margins(self) -> list[Tensor]:
        """The margins of each stage."""
        return [self.get_buffer(f"margin{i}") for i in range(len(self.connectors))]

    def begin(self, tools: Tools) -> None:
        """The margins: only now does the teacher have its weights."""
        norms = self.shapes.known.norms or (None,) * len(self.margins)
        found = [norm_margin(norm) for norm in norms]
        asked = (tools.ask("teacher", batch.inputs, PRE).pre for batch in tools.batches())
        measured = measured_margins(asked) if any(one is None for one in found) else found
        for margin, known, other in zip(self.margins, found, measured, strict=True):
            margin.copy_(cast(Tensor, other if known is None else known))

    def terms(self, step: Step) -> Terms:
        """The weighted sum over stages."""
        pairs = zip(step.student.pre, step.teacher.pre, strict=True)
        ours, theirs = zip(*(pool_to_match(s, t) for s, t in pairs), strict=True)
        if any(one[:, 0].numel() < 2 for one in ours):
            return {}
        guesses = [connector(s) for connector, s in zip(self.connectors, ours, strict=True)]
        loss = overhaul_loss(guesses, theirs, self.margins)
        return {"ofd": Term(loss, self.settings.weight)}
