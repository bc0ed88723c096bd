"""Progressive blockwise KD: block after block of the teacher gives way to the student's."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import at_least_float32
from fskd.methods.base import Method, MethodSettings, Step, methods, require
from fskd.methods.words import LOGITS, Needs, Pass, Phase, Role, Term, Terms, student, teacher
from fskd.types import Shapes


def block_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], block: int
) -> Float[Tensor, ""]:
    """Mean over all elements of (F_s,k - F_t,k)^2; blocks behind k get a gradient of 0.

    Args:
        student: Maps (rows, C_l, H_l, W_l) of every block.
        teacher: Maps of the same shapes, treated as constant.
        block: k, from 0.
    """
    pairs = zip(student, teacher, strict=True)
    pairs_32 = [(at_least_float32(s), at_least_float32(t.detach())) for s, t in pairs]
    own, *later = (F.mse_loss(s, t) for s, t in pairs_32[block:])
    return own + sum(0 * loss for loss in later)


@methods.register("blockwise")
class Blockwise(Method):
    """Replaces the teacher's blocks by the student's one after the other, each in its own phase.

    In phase k = 1..n: L = ce_weight*CE(z_k, y) + weight * mean (F_s,k - F_t,k)^2 + kd_weight*KD_T,
    with z_k = T_n(...T_k+1(F_s,k)) the logits of the student's blocks 1..k followed by the frozen
    ones of the teacher, F_k in R^(rows x C_k x H_k x W_k) the map of stage k. The student's stem
    belongs to block 1, its classifier to block n, whose phase is ``main``: z_n are its own logits.

    Wang, Zhao, Li and Tan, *Progressive Blockwise Knowledge Distillation for Neural Network
    Acceleration*, IJCAI 2018 (no arXiv version). A block is a stage, and maps must agree in size
    and width, since the teacher continues the student; the paper designs student blocks to fit.
    All phases are equally long, and the weight of 1 is ours, not the paper's. The earlier student
    blocks are trained further. Those behind k are run, too: they get gradients of 0, so only weight
    decay and running statistics touch them before their turn. The number of phases is known when
    the networks are. The teacher's blocks in z_k are not counted as asking it. Generated rows
    enter the maps and KD.
    """

    family = "features"

    class Settings(MethodSettings):
        """Weight of the blocks' maps."""

        weight: float = Field(1.0, ge=0)

    settings: Settings
    passes = student("stages"), teacher("stages"), Pass("hybrid", "student", LOGITS)
    labelled = ("hybrid",)
    phases: Sequence[Phase] = (Phase(),)
    roles: Mapping[str, Role] = {}
    needs = Needs(equal_channels=True)

    def build(self, shapes: Shapes) -> None:
        """The teacher behind each block, and the phase in which it continues the student."""
        ours, theirs = shapes.student.stages, shapes.known.stages
        require(ours == theirs, "blockwise", f"maps of {ours} and {theirs}", "equal stages")
        tails = range(len(ours) - 1)
        self.roles = {f"tail{i}": Role(of="teacher", weights="shared", after=i) for i in tails}
        before = [
            Phase(
                name=f"block{i}",
                trains=("student.features",),
                passes=(*self.passes[:2], Pass("hybrid", tail, LOGITS, f"student.stages.{i}")),
            )
            for i, tail in enumerate(self.roles)
        ]
        self.phases = (*before, Phase())

    def terms(self, step: Step) -> Terms:
        """The block whose turn it is."""
        block = [one.name for one in self.phases].index(step.progress.phase.rpartition(".")[2])
        loss = block_loss(step.student.stages, step.teacher.stages, block)
        return {"block": Term(loss, self.settings.weight)}
