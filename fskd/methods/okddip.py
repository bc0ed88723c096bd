"""OKDDip: branches that learn from each other, each in its own proportions, and teach a leader."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Needs, Pass, Role, Term, Terms, student
from fskd.types import Shapes


def attention(
    queries: Float[Tensor, "batch peers dim"], keys: Float[Tensor, "batch peers dim"]
) -> Float[Tensor, "batch peers peers"]:
    """Softmax over j of <query_i, key_j> in each row: how much peer i learns from peer j."""
    products = at_least_float32(queries).unsqueeze(2) * at_least_float32(keys).unsqueeze(1)
    return products.sum(3).softmax(2)


def peer_divergence(
    student: Float[Tensor, "*rows classes"],
    target: Float[Tensor, "*rows classes"],
    temperature: float = 3.0,
    eps: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum over peers, mean over rows of T^2 * KL(softmax(target/T) + eps || softmax(student/T)).

    Args:
        student: Logits (rows, K), or (rows, peers, K).
        target: Logits of the same shape; the gradient reaches them, too.
        temperature: T > 0.
        eps: Added to the soft targets, which then sum to more than 1.
    """
    log_p = F.log_softmax(at_least_float32(target) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    if eps:
        log_p = (log_p.exp() + eps).log()
    # Of logarithms: a probability that vanishes has a gradient of 0 then, not of 0 * inf.
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


@methods.register("okddip")
class OKDDip(Method):
    """Matches attended mixtures of peer branches, whose mean teaches the student.

    L = ce_weight * [CE(z, y) + sum_i CE(z_i, y)] + w * [sum_i KD_3(z_i, sum_j A_ij z_j) +
    KD_3(z, mean_j z_j)] for the leader's logits z and its peers' z_i (rows, K); A_i = softmax_j
    <Q e_i, K e_j> in each row, of pooled embeddings e (rows, D), Q and K linear to D/8, no bias;
    w = consistency_weight * exp(-5 (1 - min(done/ramp, 1))^2). The leader is the student itself,
    its peers share all but its last stage and are thrown away after training; no teacher.

    Chen, Mei, Wang, Feng and Chen, *Online Knowledge Distillation with Diverse Peers*, AAAI 2020,
    arXiv 1912.00350, in its form with branches; ramp of the authors' code, 80 of 300 epochs. As in
    that code no target is a constant: Q and K learn through the targets only. It adds 1e-7 to the
    soft targets; here KD is exact. Both terms enter the divisor of the total. Generated rows enter
    KD only.
    """

    family = "online"

    class Settings(BareSettings):
        """Branches, weights, and the share of training in which KD's weight rises."""

        n_branches: int = Field(4, ge=3, description="The leader and its peers.")
        ce_weight: float = Field(1.0, ge=0)
        consistency_weight: float = Field(1.0, ge=0)
        temperature: float = Field(3.0, gt=0)
        ramp: float = Field(80 / 300, gt=0)
        reduction: int = Field(8, ge=1, description="Embedding's width over that of Q and K.")

    settings: Settings
    unit = frozenset({"okddip_peers", "okddip_leader"})
    needs = Needs(stages=2, min_rows=1)

    @property
    def roles(self) -> Mapping[str, Role]:
        """The peers."""
        return {f"peer{i}": Role(after=-2) for i in range(1, self.settings.n_branches)}

    @property
    def labelled(self) -> Sequence[str]:
        """All branches."""
        return "student", *self.roles

    @property
    def passes(self) -> Sequence[Pass]:
        """The leader, and its peers on its trunk."""
        taps = frozenset({"logits", "embedding"})
        fed = [Pass(name, name, taps, "student.stages.-2") for name in self.roles]
        return student("logits"), *fed

    def build(self, shapes: Shapes) -> None:
        """Queries and keys."""
        (width,) = shapes.student.embedding
        narrow = max(width // self.settings.reduction, 1)
        self.query, self.key = (nn.Linear(width, narrow, bias=False) for _ in range(2))

    def peers(self, step: Step) -> Float[Tensor, "batch peers classes"]:
        """Their logits."""
        return torch.stack([at_least_float32(step[name].logits) for name in self.roles], 1)

    def terms(self, step: Step) -> Terms:
        """What the peers learn from each other, and the leader from them."""
        own, logits = self.settings, self.peers(step)
        embeddings = torch.stack([step[name].embedding for name in self.roles], 1)
        embeddings = at_least_float32(embeddings)
        shares = attention(self.query(embeddings), self.key(embeddings))
        # Not a product of matrices, which autocast would round.
        targets = (shares.unsqueeze(3) * logits.unsqueeze(1)).sum(2)
        among = peer_divergence(logits, targets, own.temperature)
        leader = peer_divergence(step.student.logits, logits.mean(1), own.temperature)
        done = min(step.progress.fraction / own.ramp, 1.0)
        weight = own.consistency_weight * math.exp(-5 * (1 - done) ** 2)
        return {"okddip_peers": Term(among, weight), "okddip_leader": Term(leader, weight)}

    def measured(self, step: Step) -> Mapping[str, Tensor]:
        """The mean of the peers, and each of them."""
        logits = self.peers(step)
        return {"ensemble": logits.mean(1), **dict(zip(self.roles, logits.unbind(1), strict=True))}
