"""AdaMixUp: mixup with shares from intervals that a network learns for each pair."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from fskd.losses.targets import at_least_float32, mixed_cross_entropy
from fskd.methods.base import Method, MethodSettings, Step, methods
from fskd.methods.words import Needs, Player, Term, Terms, student
from fskd.seeding import to_device
from fskd.types import Batch, Shapes

WIDTH = 16


def interval_shares(
    scores: Float[Tensor, "rows 3"], u: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Shares a + b*u for (a, b, c) = softmax(scores): u in [0, 1] moved into [a, a+b].

    Args:
        scores: The policy's, one row a pair.
        u: Where in its interval the share of a pair lies.

    Example:
        >>> interval_shares(torch.zeros(3, 3), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.3333, 0.5000, 0.6667])
    """
    low, length, _ = at_least_float32(scores).softmax(1).unbind(1)
    return low + length * u


def intrusion_loss(
    made: Float[Tensor, " mixed"], real: Float[Tensor, " real"]
) -> Float[Tensor, ""]:
    """Mean of -log d over mixed rows plus mean of -log(1-d) over real ones, d = sigmoid(score).

    Args:
        made: The discriminator's scores of mixed rows; large for rows that look mixed.
        real: Its scores of real rows.
    """
    made, real = at_least_float32(made), at_least_float32(real)
    return F.softplus(-made).mean() + F.softplus(real).mean()


def drawn_pairs(
    targets: Int[Tensor, " batch"], classes: Int[Tensor, "rows 2"], rng: torch.Generator
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """First parents and partners: random rows of these classes, two unlike ones if there are two.

    Args:
        targets: Class of each row that may be a parent, batch > 0.
        classes: Of the pairs. In the place of a class that is not there any row is drawn.
        rng: CPU generator.
    """
    noise = torch.rand(2, len(classes), len(targets), generator=rng)
    ranks = to_device(noise, targets.device) + (classes.T.unsqueeze(2) == targets)
    first = ranks[0].argmax(1)
    return first, ranks[1].scatter(1, first.unsqueeze(1), -1.0).argmax(1)


def make_policy(channels: int) -> nn.Sequential:
    """Images to three scores: two 3x3 convolutions with stride 2 and ReLU, mean, linear layer."""
    first = nn.Conv2d(channels, WIDTH, 3, 2, padding=1)
    second = nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, padding=1)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *pool, nn.Linear(2 * WIDTH, 3))


@methods.register("adamixup")
class AdaMixUp(Method):
    """Matches the labels of real and of mixed rows, mixed by shares from learned intervals.

    (a, b, c) = softmax(policy(r x_i + (1-r) x_j)), r ~ U(0, 1); x~ = l x_i + (1-l) x_j (M, C, H, W)
    with l = a + b*u in [0, 1]. L = ce_weight*CE(s(x), y) + mixed_weight*(l CE(s(x~), y_i) + (1-l)
    CE(s(x~), y_j)) + intrusion_weight*(-log d(x~) - log(1-d(x))), batch means, d the sigmoid of a
    linear layer on the student's embedding (rows, D). Student, d and policy all minimise it: mixes
    that look like real images are costly, so intervals leave them out. kd_weight adds KD_T on real
    and mixed rows.

    Guo, Mao and Zhang, *MixUp as Locally Linear Out-of-Manifold Regularization*, AAAI 2019, arXiv
    1809.02499. Differences: pairs only, no triples; the policy is a small network with an Adam of
    its own, in its steps moved by mixed_weight and intrusion_weight alone (not by KD, whose teacher
    is constant). Real rows in d are those of the batch, unlabelled ones included, in the place of
    images that the step has not mixed. M, u and the classes of the pairs are the generator's, u its
    share of the first parent (by default U(0, 1)), so that ``adamixup`` sees as many rows as
    ``mixup``; which rows of these classes are mixed is drawn anew. Without a generator this is
    ``ce``; in a step without real rows the generator's rows stay as they are.
    """

    class Settings(MethodSettings):
        """Weights, and the policy's optimiser."""

        mixed_weight: float = Field(1.0, ge=0)
        intrusion_weight: float = Field(1.0, ge=0)
        lr: float = Field(1e-3, gt=0, description="Adam's, of the policy.")

    settings: Settings
    family = "mixing"
    passes = (student("logits", "embedding"),)
    needs = Needs(one_process=True)
    default_generator: ClassVar[str | None] = "mixup"

    @property
    def players(self) -> Mapping[str, Player]:
        """The student with the discriminator, and the policy."""
        adam = {"name": "adam", "lr": self.settings.lr, "weight_decay": 0.0}
        return {"main": Player(), "policy": Player(("method.policy",), adam)}

    def build(self, shapes: Shapes) -> None:
        """The policy and the discriminator."""
        self.policy = make_policy(shapes.inputs[0])
        self.discriminator = nn.Linear(shapes.student.embedding[0], 1)

    def relabel(self, batch: Batch, ask: Callable[[Tensor], Tensor], rng: torch.Generator) -> Batch:
        """Mixes of real rows in the place of generated rows, with a gradient in the policy."""
        if batch.parents is None or batch.shares is None or not batch.n_real:
            return batch
        first, partner = drawn_pairs(batch.targets, batch.parents, rng)
        one, other, made = batch.inputs[first], batch.inputs[partner], batch.part("generated")
        r = to_device(torch.rand(len(first), generator=rng), one.device).to(one)
        scores = self.policy(torch.lerp(other, one, r[:, None, None, None]))
        share = interval_shares(scores, batch.shares[:, 0].to(one))
        rows = torch.lerp(other, one, share[:, None, None, None])
        inputs = torch.cat([batch.inputs[: made.start], rows, batch.inputs[made.stop :]])
        parents = torch.stack([batch.targets[first], batch.targets[partner]], 1)
        shares = torch.stack([share, 1 - share], 1)
        return batch._replace(inputs=inputs, parents=parents, shares=shares)

    def terms(self, step: Step) -> Terms:
        """What tells mixed rows from real ones, and what the policy minimises."""
        own, batch, made = self.settings, step.batch, step.batch.part("generated")
        if batch.parents is None or batch.shares is None or not batch.n_real:
            return {}
        embedding = at_least_float32(step.student.embedding)
        scores = at_least_float32(self.discriminator(embedding)).squeeze(1)
        intrusion = intrusion_loss(scores[made], scores[: batch.n_known])
        found = {
            "intrusion": Term(intrusion, own.intrusion_weight),
            "policy_intrusion": Term(intrusion, own.intrusion_weight, "policy"),
        }
        if own.mixed_weight > 0:
            labels = mixed_cross_entropy(step.student.logits[made], batch.parents, batch.shares)
            found["policy_mixed"] = Term(labels, own.mixed_weight, "policy")
        return found
