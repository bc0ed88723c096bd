"""NetGraft: the student's blocks, grafted into the teacher one by one and then chained."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, logits_mse
from fskd.methods.base import MethodSettings, Step, methods, require
from fskd.methods.words import Needs, Term, Terms, student, teacher
from fskd.models.grafts import STAGES, Grafts
from fskd.models.joints import can_merge, merge, readers
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands, Procedure

READ = frozenset({"logits", "stages"})


def graft_loss(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    normalised: bool = False,
) -> Float[Tensor, ""]:
    """Mean over rows and classes of (s - t)^2, or the sum of it for logits of length 1.

    Args:
        student: Logits (rows, K) of the grafted network.
        teacher: Logits (rows, K), treated as constant.
        normalised: Whether each row is divided by its L2 norm; then the squares are summed.
    """
    if not normalised:
        return logits_mse(student, teacher)
    s, t = (F.normalize(at_least_float32(z)) for z in (student, teacher.detach()))
    return F.mse_loss(s, t, reduction="sum")


def stretches(n: int, steps: int, alone: float) -> list[tuple[int, int, int]]:
    """First and last block of each graft and its updates; the rest is the whole student's.

    Args:
        n: Blocks.
        steps: Updates in all.
        alone: Share of the blocks alone, divided equally; the chains divide the rest.

    Example:
        >>> stretches(3, 40, 0.75)
        [(0, 0, 10), (1, 1, 10), (2, 2, 10), (0, 1, 5)]
    """
    own = int(steps * alone) // n
    rest = (steps - n * own) // max(n - 1, 1)
    found = [*((k, k, own) for k in range(n)), *((0, k, rest) for k in range(1, n - 1))]
    return [one for one in found if one[2] > 0]


@methods.register("netgraft")
class NetGraft(Procedure):
    """Grafts the student's blocks into the teacher, each alone, then more and more of them.

    Block k of n is the student's stage k, the first with its stem, the last with its classifier.
    L = mean over rows and classes of (s - t)^2, or with ``normalised`` the sum of it for logits of
    length 1, where t (rows, K) are the teacher's logits and s those of the teacher with (i) block k
    in the place of its own, for k = 1..n, where only this block learns; (ii) blocks 1..k, for
    k = 2..n, the last of which is the student itself. Where channels differ, 1x1 adaptors before
    and behind the blocks learn with them.

    Shen, Wang, Yin, Song, Luo and Song, *Progressive Network Grafting for Few-Shot Knowledge
    Distillation*, AAAI 2021, arXiv 2012.04915; rates of the authors' code. Differences: there,
    adaptors have a bias and stay in the student. Here each pair between two blocks is merged into
    the convolutions that read it, exactly, before the last chain, so that the student is a plain
    network; where something else reads a stage, channels must be equal. All blocks have one rate;
    every stage is grafted, and none is copied from the teacher; the last update counts, where the
    code keeps the epoch that is best on test. ``alone`` of the updates is divided equally among the
    blocks, the rest among the chains. Weights of labels and KD, 0 in the paper, add to the last.
    """

    class Settings(MethodSettings):
        """Form of the loss, and how the blocks learn alone."""

        weight: float = Field(1.0, gt=0, description="In the last chain.")
        ce_weight: float = Field(0.0, ge=0)
        normalised: bool = Field(False, description="Logits of length 1, squares summed.")
        alone: float = Field(0.75, ge=0, lt=1, description="Share of updates of blocks alone.")
        block_lr: float = Field(1e-3, gt=0, description="Of blocks alone; chains have optim.lr.")

    settings: Settings
    family = "few-sample"
    passes = student("logits"), teacher("logits")
    needs = Needs(stages=1, equal_stages=True, exact_logits=True)
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adam", "lr": 1e-4, "weight_decay": 0.0, "schedule": "constant"}
    }

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        """Maps are of equal size, both can be divided, and unlike channels can be adapted."""
        accepted = "one network as the teacher"
        require(isinstance(teacher, FeatureNet), "netgraft", type(teacher).__name__, accepted)
        source = cast(FeatureNet, teacher)
        ours, theirs = (net.tap_shapes(size, STAGES).stages for net in (student, source))
        sizes = [[f"{m[1]}x{m[2]}" for m in maps] for maps in (ours, theirs)]
        found = f"stages of {', '.join(sizes[0])} in the student and {', '.join(sizes[1])}"
        alike = sizes[0] == sizes[1]
        require(alike, "netgraft", f"{found} in the teacher", "equal sizes of all stages")
        Grafts(student, source, size, torch.Generator())
        for k, (own, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
            found = f"a student with {own[0]} channels in stage {k} and a teacher with {other[0]}"
            why = "this student has more than convolutions behind the stage, which take no adaptor"
            fits = own[0] == other[0] or can_merge(student, k, size)
            require(fits, "netgraft", found, f"equal channels ({why})")

    def run(self, hands: Hands) -> None:
        """Blocks alone, chains, and the whole student."""
        source, net = cast(FeatureNet, hands.teacher.net), hands.student
        grafts = Grafts(net, source, hands.size, hands.rng)
        for part in grafts.blocks:
            part.train()
        losses, planned = {}, stretches(len(grafts.blocks), hands.steps, self.settings.alone)
        if not any(first == last for first, last, _ in planned):
            hands.say("no block is grafted alone, for want of updates")
        for first, last, steps in planned:
            name = f"block {last + 1}" if first == last else f"blocks 1-{last + 1}"
            losses[name] = self._graft(hands, grafts, first, last, steps)
            hands.say(f"{name} grafted: {steps} updates, loss {losses[name]:.4g}")
        for k, matrix in grafts.joints().items():
            merge(readers(net, k, hands.size), matrix)
        hands.note("losses", losses)
        hands.train()

    def _graft(self, hands: Hands, grafts: Grafts, first: int, last: int, steps: int) -> float:
        """Some updates of some blocks in the teacher; the loss at the end."""

        def loss(images: Tensor) -> Tensor:
            known = hands.teacher.ask(images, READ)
            x = images if first == 0 else known.stages[first - 1]
            return graft_loss(grafts.logits(x, first, last), known.logits, self.settings.normalised)

        lr = self.settings.block_lr if first == last else None
        return hands.descend(loss, grafts.parameters(first, last), steps, lr)

    def terms(self, step: Step) -> Terms:
        """The whole student's logits."""
        own, logits = self.settings, (step.student.logits, step.teacher.logits)
        return {"graft": Term(graft_loss(*logits, own.normalised), own.weight)}
