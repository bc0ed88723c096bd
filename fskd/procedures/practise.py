"""PRACTISE: the teacher without the blocks that are the easiest to do without."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fskd.methods.base import MethodSettings, Step, methods, require
from fskd.methods.words import Phase, Term, Terms, student, teacher
from fskd.models.blocks import kept_state, spare, stacks, surplus, with_gap
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands, Procedure
from fskd.procedures.mimic import OPTIM, mimic_loss
from fskd.types import Shapes

PRE = frozenset({"pre"})
Scores = Mapping[tuple[str, int], float]


def chosen(
    scores: Scores, free: Mapping[str, list[int]], n: Mapping[str, int]
) -> dict[str, list[int]]:
    """Positions of the blocks to take out of each stack: those with the lowest scores.

    Args:
        scores: Recoverability by stack and position; a stack without any loses all that are free.
        free: Positions of the blocks that may be taken out, by stack.
        n: How many are taken out of each stack.

    Example:
        >>> scores = {("layer1", 0): 0.3, ("layer1", 1): 0.1, ("layer1", 2): 0.2}
        >>> chosen(scores, {"layer1": [0, 1, 2], "layer2": [1]}, {"layer1": 2, "layer2": 1})
        {'layer1': [1, 2], 'layer2': [1]}
    """
    ranked = sorted((scores.get((p, i), 0.0), i, p) for p, places in free.items() for i in places)
    best = {path: [i for _, i, p in ranked if p == path] for path in free}
    return {path: sorted(best[path][: n[path]]) for path in free}


@methods.register("practise")
class Practise(Procedure):
    """Takes out the teacher's blocks that are recovered best, and fine-tunes what is left.

    For each residual block whose input and output are alike: the teacher without it, with square
    1x1 adaptors W around the gap, is trained on L = mean (F_s - F_t)^2 in W alone, F in R^(rows x C
    x H x W) the last map before pooling, all batch norms in eval mode. Its L over the unmoved
    images is then the block's *recoverability*. The student is what is left of the teacher without
    the blocks of the lowest, and is trained, but for its classifier, on weight*L (MiR) +
    ce_weight*CE + kd_weight*KD_T.

    Wang and Wu, *Practical Network Acceleration with Tiny Sets*, CVPR 2023, arXiv 2202.07861;
    optimiser of the authors' code, where adaptors are discarded, too. Differences: the student
    says how many blocks each stage keeps, so blocks compete within their stage; there all save the
    same multiply-adds, so dividing by the saved latency would not change their order, and it is
    left out. Stages without a choice are not ranked. ``ranking`` of the updates is divided equally
    among the candidates, the fine-tuning makes the rest. A stage's first block may go, too, if it
    has no convolution in its shortcut; then, the convolution before the stage is adapted. The
    student's initial weights are replaced.
    """

    class Settings(MethodSettings):
        """Weights of the fine-tuning, and the share of the updates before it."""

        weight: float = Field(1.0, gt=0)
        ce_weight: float = Field(0.0, ge=0)
        ranking: float = Field(0.5, ge=0, lt=1, description="Share of updates that rank blocks.")

    settings: Settings
    family = "few-sample"
    example: ClassVar[Mapping[str, Any]] = {"student": "resnet8", "teacher": "resnet14"}
    passes = student("pre"), teacher("pre")
    phases = (Phase(trains=("student.features",)),)
    defaults: ClassVar[Mapping[str, Any]] = {"optim": OPTIM}

    def build(self, shapes: Shapes) -> None:
        """Makes sure that the last maps are alike."""
        ours, theirs = (net.pre[-1:] for net in (shapes.student, shapes.known))
        alike = bool(ours) and ours == theirs
        require(alike, "practise", f"last maps of {ours} and {theirs}", "equal ones")

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        """The student is the teacher with fewer blocks."""
        known = isinstance(teacher, FeatureNet)
        fewer = known and surplus(student.net, cast(FeatureNet, teacher).net) is not None
        found = f"a student with {_blocks(student)} and a teacher with {_blocks(teacher)}"
        accepted = "the teacher with fewer residual blocks, such as resnet8 and resnet14"
        require(fewer, "practise", found, accepted)

    def run(self, hands: Hands) -> None:
        """Ranks the blocks, makes the student, fine-tunes it."""
        source, net = cast(FeatureNet, hands.teacher.net), hands.student.net
        n = cast(dict[str, int], surplus(net, source.net))
        free = {path: spare(stack) for path, stack in stacks(source.net).items()}
        rivals = [(p, i) for p in free for i in free[p] if 0 < n[p] < len(free[p])]
        steps = int(hands.steps * self.settings.ranking) // max(len(rivals), 1)
        scores = {one: self._score(hands, source, *one, steps) for one in rivals}
        missing = chosen(scores, free, n)
        net.load_state_dict(kept_state(source.net, missing))
        named = [f"{path}.{i}" for path in missing for i in missing[path]]
        found = {f"{path}.{i}": score for (path, i), score in scores.items()}
        hands.note("dropped", named)
        hands.note("recoverability", found)
        hands.note("ranking_steps", steps * len(rivals))
        hands.say(f"without {', '.join(named)}")
        if found:
            order = ", ".join(
                f"{name} {found[name]:.3g}" for name in sorted(found, key=found.__getitem__)
            )
            trained = f"after {steps} updates each" if steps else "untrained, for want of updates"
            hands.say(f"recoverability, {trained}: {order}")
        hands.train()

    def _score(self, hands: Hands, source: FeatureNet, path: str, index: int, steps: int) -> float:
        """A block's recoverability."""
        net, adaptors = with_gap(source, path, index)

        def loss(images: Tensor) -> Tensor:
            return mimic_loss(net(images, PRE), hands.teacher.ask(images, PRE))

        hands.descend(loss, adaptors, steps)
        with torch.no_grad():
            parts = [(float(loss(images)), len(images)) for images in hands.images()]
        return sum(value * rows for value, rows in parts) / sum(rows for _, rows in parts)

    def terms(self, step: Step) -> Terms:
        """The last map."""
        return {"mimic": Term(mimic_loss(step.student, step.teacher), self.settings.weight)}


def _blocks(net: nn.Module) -> str:
    found = stacks(net.net) if isinstance(net, FeatureNet) else {}
    counts = ", ".join(str(len(stack)) for stack in found.values())
    return f"{counts} residual blocks" if counts else "no residual blocks"
