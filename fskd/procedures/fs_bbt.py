"""FS-BBT: mixes and samples of a CVAE, labelled once by a black box, stand for many images."""

import torch
from pydantic import Field
from torch import Tensor, nn

from fskd.generators.shares import draw_shares
from fskd.methods.base import methods
from fskd.models.cvae import decoded, fitted
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands, Labelled
from fskd.procedures.pairs import mixed
from fskd.procedures.queries import (
    Budgeted,
    BudgetSettings,
    allowed,
    check_answers,
    check_mixes,
    entry,
)

WIDEST = 3.0  # half of the codes are uniform on [-3, 3]


def inner_shares(count: int, alpha: float, margin: float, rng: torch.Generator) -> Tensor:
    """Shares from Beta(alpha, alpha) that are further than a margin from 0 and 1, (count,)."""
    found, missing = list[Tensor](), count
    while missing > 0:
        drawn = draw_shares(2 * missing + 16, "beta", "sample", rng, alpha)
        found.append(drawn[(drawn > margin) & (drawn < 1 - margin)][:missing])
        missing -= len(found[-1])
    return torch.cat(found) if found else torch.empty(0)


def random_mixes(
    images: Tensor, count: int, alpha: float, margin: float, rng: torch.Generator
) -> Tensor:
    """Mixes of random pairs of different images, uint8 (count, C, H, W)."""
    n = len(images)
    first = torch.randint(n, (count,), generator=rng)
    second = (first + 1 + torch.randint(n - 1, (count,), generator=rng)) % n
    share = inner_shares(count, alpha, margin, rng)
    return mixed(images, first, second, share)


def codes(count: int, latent: int, rng: torch.Generator) -> Tensor:
    """Codes (count, latent), half of them from N(0, 1), the others uniform on [-3, 3]."""
    normal = torch.randn(count // 2, latent, generator=rng)
    uniform = torch.rand(count - count // 2, latent, generator=rng)
    return torch.cat([normal, WIDEST * (2 * uniform - 1)])


@methods.register("fs_bbt")
class FSBBT(Budgeted):
    """Few images, their mixes and CVAE samples, labelled once by a black box; no labels are used.

    L = T^2*KL(softmax(t/T) || softmax(s/T)), the mean over rows (B, K), with the gradient of
    cross-entropy with soft labels at T = 1. Mixes are l*x_i + (1-l)*x_j with l from Beta(alpha,
    alpha), without those within ``margin`` of 0 or 1. The conditional VAE is trained first, on the
    real images given the classes that the teacher sees in them; its updates are not the student's.

    Nguyen, Gupta, Do and Venkatesh, *Black-box Few-shot Knowledge Distillation*, ECCV 2022, arXiv
    2207.12106; shares, codes and length of z are those of the code, where as many samples are made
    as mixes are dropped, a tenth. Differences: the CVAE is smaller than that for CIFAR-10, and has
    the same updates for all data; classes take turns; two different images are mixed; ``optim`` is
    the run's (Adam there). Images that ``data.augment`` moves keep the answer for the unmoved.
    """

    class Settings(BudgetSettings):
        """The budget, its shares, and how images are made."""

        cvae_share: float = Field(0.1, ge=0, le=1, description="Samples among synthetic images.")
        alpha: float = Field(1.0, ge=0.05, description="Shares come from Beta(alpha, alpha).")
        margin: float = Field(
            0.05, ge=0, lt=0.5, description="Shares nearer to 0 or 1 are dropped."
        )
        latent: int = Field(2, ge=1, description="Length of the CVAE's code.")
        cvae_steps: int = Field(1000, ge=1, description="Updates of the CVAE.")

    settings: Settings

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        check_answers("fs_bbt", teacher)

    def queries(self, n_train: int, steps: int, budget: int | None) -> int:
        return sum(self.plan(n_train, budget))

    def plan(self, n_train: int, budget: int | None) -> tuple[int, int, int]:
        """Real images, mixes and samples that are asked about."""
        check_mixes(n_train)
        total = allowed(self.settings.queries, budget, n_train, n_train + 1)
        samples = round(self.settings.cvae_share * (total - n_train))
        return n_train, total - n_train - samples, samples

    def run(self, hands: Hands) -> None:
        own, pixels = self.settings, hands.pixels()
        real, mixes, samples = self.plan(len(pixels), hands.budget)
        # Streams of their own, so that images that are kept already move no others.
        seeds = torch.randint(2**62, (2,), generator=hands.rng).tolist()
        of_mixes, of_samples = (torch.Generator().manual_seed(seed) for seed in seeds)
        made = first = hands.label("real", lambda: pixels)
        if mixes:
            made = made + hands.label(
                "mixup", lambda: random_mixes(pixels, mixes, own.alpha, own.margin, of_mixes)
            )
        if samples:
            made = made + hands.label(
                "cvae", lambda: self._samples(hands, first, samples, of_samples)
            )
            hands.note("cvae_updates", own.cvae_steps)
        hands.distil(made, hands.steps)
        hands.note("asked", {"real": real, "mixup": mixes, "cvae": samples})
        hands.note("rounds", [entry(hands, len(made.images), hands.steps, made)])

    def _samples(self, hands: Hands, real: Labelled, count: int, rng: torch.Generator) -> Tensor:
        """Samples of a CVAE that is trained on the real images; classes take turns."""
        own, num_classes = self.settings, real.probs.shape[1]
        device = next(hands.student.parameters()).device
        hands.say(f"training a CVAE on {len(real.images):,} images, {own.cvae_steps:,} updates")
        net, loss = fitted(
            real.images, real.probs.argmax(1), num_classes, own.cvae_steps, own.latent, rng, device
        )
        hands.say(f"CVAE: loss {loss:.3f} per image")
        return decoded(net, codes(count, own.latent, rng), torch.arange(count) % num_classes)
