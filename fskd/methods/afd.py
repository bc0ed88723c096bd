"""AFD: students that make their maps look like each other's in the eyes of discriminators."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fskd.losses.targets import at_least_float32, kl_divergence
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.words import Needs, Pass, Player, Role, Term, Terms
from fskd.types import Shapes

TAPS = frozenset({"logits", "stages"})


def judge_loss(real: Float[Tensor, " batch"], fake: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over rows of (1 - real)^2 + fake^2.

    Args:
        real: The discriminator's score of the other student's maps, in [0, 1].
        fake: Its score of its own student's maps.
    """
    return ((1 - real).square() + fake.square()).mean()


def deceit_loss(fake: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over rows of (1 - fake)^2: maps that shall pass for the other student's.

    Args:
        fake: The discriminator's score of its own student's maps, in [0, 1].
    """
    return (1 - fake).square().mean()


class Judge(nn.Module):
    """Scores of maps in [0, 1]: 3x3 convolution, batch norm, leaky ReLU, 1x1, mean, sigmoid.

    Args:
        channels: Of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # Never in eval mode, so that running statistics would be of no use.
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.layers = nn.Sequential(first, norm, nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 1))

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, " batch"]:
        """One score per row."""
        return at_least_float32(self.layers(maps)).mean((1, 2, 3)).sigmoid()


def make_transfer(channels: int) -> nn.Sequential:
    """What stands between a student's map and the discriminators: 1x1, batch norm, ReLU."""
    norm = nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), norm, nn.ReLU())


@methods.register("afd")
class AFD(Method):
    """Matches the distribution of the next student's maps, and its class probabilities.

    main minimises sum_i [ce_weight*CE(s_i, y) + mutual_weight*T^2 KL(p_{i+1} || p_i) +
    adversarial_weight*(1 - D_i(A_i F_i))^2], the discriminators sum_i (1 - D_i(A_{i+1} F_{i+1}))^2
    + D_i(A_i F_i)^2, where F_i (B, C, H, W) is the map of the last stage, A_i a 1x1 convolution
    with batch norm and ReLU that is trained with student i, p the softmax of logits (B, K) over T,
    and i+1 the next of the students in a circle. All start afresh; no teacher.

    Chung, Park, Kim and Kwak, *Feature-map-level Online Adversarial Knowledge Distillation*, ICML
    2020, arXiv 2002.01775 (not the attention-based AFD); no public code. Differences: the paper
    minimises the deceit in each student by a second, much slower optimiser (Adam); here a network
    has one, and a weight of 0.1 makes the deceit slower. Sizes of A and D are ours; D sees either
    student's maps as a batch of its own, so its batch norm hides means and scales. Students are
    updated together, and are all built like the first. The discriminators alone have Adam. Label
    and mutual terms enter the divisor of the total. Generated rows enter all but labels; with one
    row, which batch norm cannot normalise, own terms are left out.
    """

    family = "adversarial"

    class Settings(BareSettings):
        """Number of students, weights, and the discriminators' optimiser."""

        n_students: int = Field(2, ge=2)
        ce_weight: float = Field(1.0, ge=0)
        mutual_weight: float = Field(1.0, ge=0)
        temperature: float = Field(3.0, gt=0)
        adversarial_weight: float = Field(0.1, ge=0)
        lr: float = Field(1e-4, gt=0, description="Adam's, of the discriminators.")

    settings: Settings
    unit = frozenset({"afd_mutual"})
    needs = Needs(stages=1, min_rows=2, one_process=True)

    @property
    def roles(self) -> Mapping[str, Role]:
        """The further students."""
        return {f"fellow{i}": Role() for i in range(1, self.settings.n_students)}

    @property
    def labelled(self) -> Sequence[str]:
        """All students."""
        return "student", *self.roles

    @property
    def passes(self) -> Sequence[Pass]:
        """Logits and maps of all students."""
        return [Pass(name, name, TAPS) for name in self.labelled]

    @property
    def players(self) -> Mapping[str, Player]:
        """The students with what transfers their maps, and the discriminators."""
        adam = {"name": "adam", "lr": self.settings.lr, "weight_decay": 0.0}
        return {"main": Player(), "discriminators": Player(("method.judges",), adam)}

    def build(self, shapes: Shapes) -> None:
        """A transfer layer and a discriminator for each student."""
        channels, n = shapes.student.stages[-1][0], self.settings.n_students
        self.transfers = nn.ModuleList(make_transfer(channels) for _ in range(n))
        self.judges = nn.ModuleList(Judge(channels) for _ in range(n))

    def terms(self, step: Step) -> Terms:
        """What students and discriminators minimise."""
        own, nets = self.settings, [step[name] for name in self.labelled]
        maps = [
            transfer(at_least_float32(net.stages[-1]))
            for transfer, net in zip(self.transfers, nets, strict=True)
        ]
        mutual, deceit, judged = list[Tensor](), list[Tensor](), list[Tensor]()
        for i, judge in enumerate(self.judges):
            other = (i + 1) % len(nets)
            mutual.append(kl_divergence(nets[i].logits, nets[other].logits, own.temperature))
            fixed = {name: p.detach() for name, p in judge.named_parameters()}
            deceit.append(deceit_loss(functional_call(judge, fixed, (maps[i],))))
            judged.append(judge_loss(judge(maps[other].detach()), judge(maps[i].detach())))
        return {
            "afd_mutual": Term(torch.stack(mutual).sum(), own.mutual_weight),
            "afd_deceit": Term(torch.stack(deceit).sum(), own.adversarial_weight),
            "afd_judged": Term(torch.stack(judged).sum(), by="discriminators"),
        }

    def measured(self, step: Step) -> Mapping[str, Tensor]:
        """The further students."""
        return {name: step[name].logits for name in self.roles}
