"""Codistillation: students that follow what their peers predict, or predicted a while ago."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fskd.losses.targets import at_least_float32, soft_cross_entropy
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import LOGITS, Needs, Pass, Role, Term, Terms
from fskd.types import Shapes


def agreement_loss(
    logits: Sequence[Tensor], probs: Float[Tensor, "students batch classes"]
) -> Float[Tensor, ""]:
    """Sum over students i of the cross-entropy of softmax(z_i) to the mean of the peers' probs.

    Args:
        logits: Logits (rows, classes) of each student, at least two.
        probs: What each student predicts or predicted for these rows, constant.

    Returns:
        The sum in nats, averaged over rows.
    """
    probs = probs.detach()
    peers = (probs.sum(0) - probs) / (len(logits) - 1)
    pairs = zip(logits, peers, strict=True)
    return torch.stack([soft_cross_entropy(one, goal) for one, goal in pairs]).sum()


@methods.register("codistillation")
class Codistillation(Method):
    """Matches the mean prediction of peers, after a burn-in; students trained together.

    L = ce_weight * sum_i CE(s_i, y) + distill_weight * sum_i H(mean_{j!=i} p_j, softmax(s_i)) on
    logits s_i (B, K), H the cross-entropy; the second term begins when a share ``burn_in`` of
    training is over. No teacher.

    Anil, Pereyra, Passos, Ormandi, Dahl and Hinton, *Large Scale Distributed Neural Network
    Training through Online Distillation*, ICLR 2018, arXiv 1804.03235. There is no public code, and
    weight and burn-in are set by hand for each of its data sets; here they are 1 and a tenth.
    There each student sees a part of the data of its own and copies of its peers that are tens to
    thousands of updates old, because weights are sent seldom. Here all students see the same
    batches. By default p_j is the peers' prediction of this step, the limit of an exchange in every
    step, which costs nothing in one process. ``stale`` follows what the peers predicted when they
    saw the same example last, under that view's augmentation: a pass over the subset ago, kept in a
    memory (students, n, K); an example that is seen for the first time is left out, and rows that
    are not real have no place in it. Both terms enter the divisor of the total.
    """

    family = "online"

    class Settings(BareSettings):
        """Number of students, weights, and which predictions are followed from when on."""

        n_students: int = Field(2, ge=2)
        ce_weight: float = Field(1.0, ge=0)
        distill_weight: float = Field(1.0, ge=0)
        burn_in: float = Field(0.1, ge=0, lt=1, description="Share of training.")
        stale: bool = False

    settings: Settings
    unit = frozenset({"codistill"})
    needs = Needs(min_rows=1)
    past: Tensor
    known: Tensor

    def __init__(self, settings: BareSettings) -> None:
        super().__init__(settings)
        if self.settings.stale:
            self.needs = self.needs._replace(one_process=True)

    @property
    def roles(self) -> Mapping[str, Role]:
        """The peers."""
        return {f"peer{i}": Role(peer=True) for i in range(1, self.settings.n_students)}

    @property
    def labelled(self) -> Sequence[str]:
        """All students."""
        return "student", *self.roles

    @property
    def passes(self) -> Sequence[Pass]:
        """Logits of all students."""
        return [Pass(name, name, LOGITS) for name in self.labelled]

    def build(self, shapes: Shapes) -> None:
        """The memory: what each student predicted, and which examples were seen."""
        if self.settings.stale:
            size = self.settings.n_students, shapes.n_train, shapes.num_classes
            self.register_buffer("past", torch.zeros(size))
            self.register_buffer("known", torch.zeros(shapes.n_train, dtype=torch.bool))

    def terms(self, step: Step) -> Terms:
        """The agreement; what is predicted now is kept for later."""
        logits = [step[name].logits for name in self.labelled]
        if self.settings.stale:
            logits = [one[: step.batch.n_real] for one in logits]
        probs = torch.stack([at_least_float32(one.detach()).softmax(1) for one in logits])
        if self.settings.stale:
            kept, seen = self._exchange(step.batch.indices, probs)
            logits, probs = [one[seen] for one in logits], kept[:, seen]
        if step.progress.fraction < self.settings.burn_in or not probs.shape[1]:
            return {}
        loss = agreement_loss(logits, probs)
        return {"codistill": Term(loss, self.settings.distill_weight)}

    def _exchange(self, indices: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Former predictions for these examples and whether there are any; then the new ones."""
        before, seen = self.past[:, indices], self.known[indices]
        self.past.index_copy_(1, indices, probs.to(self.past.dtype))
        self.known.index_fill_(0, indices, True)
        return before, seen
