"""BBKD: the mixes that the student is least sure of are put to a black box, round after round."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.methods.base import methods, require
from fskd.models.taps import FeatureNet
from fskd.procedures.base import Hands
from fskd.procedures.pairs import distinct, mixed, pair
from fskd.procedures.queries import (
    Budgeted,
    BudgetSettings,
    allowed,
    check_answers,
    check_mixes,
    entry,
    spread,
)

AT_ONCE = 256  # pairs that are mixed at once


def least_confident(
    logits: Float[Tensor, "pairs shares classes"],
) -> tuple[Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Which share gives each pair's mix the smallest largest probability, and that probability."""
    confidence, which = logits.softmax(2).amax(2).min(1)
    return which, confidence


@methods.register("bbkd")
class BBKD(Budgeted):
    """Active mixup: a black box labels the mixes of few images that the student doubts most.

    Training 0 is on the n images of the subset. In each of ``rounds`` a pool of pairs is mixed,
    x~ = l*x_i + (1-l)*x_j; of every pair the l of a grid with the least confidence max_k s_k(x~) is
    kept, of the pool the least confident ones are labelled, and the student is trained on all that
    is labelled so far: L = T^2*KL(softmax(t/T) || softmax(s/T)), the mean over rows (B, K), with
    the gradient of cross-entropy with soft labels at T = 1. No labels are used.

    Wang, Li, Wang and Gong, *Neural Networks Are More Productive Teachers Than Human Raters: Active
    Mixup for Data-Efficient Knowledge Distillation from a Blackbox Model*, CVPR 2020, arXiv
    2003.13960; the grid is the code's. Differences: the updates of the run are divided, in
    proportion to the images of each training, and the student goes on rather than starting afresh;
    pools are drawn and disjoint, where the code looks at all pairs that are left; a pair is asked
    about once, as there. Rounds and pool are choices. Images that ``data.augment`` moves keep the
    answer for the unmoved.
    """

    class Settings(BudgetSettings):
        """The budget and how it is spent."""

        rounds: int = Field(4, ge=1, description="Of choosing, after a training on real images.")
        pool: int = Field(10, ge=1, description="Pairs looked at for each that is chosen.")
        low: float = Field(0.3, ge=0, le=1, description="Smallest share of the grid.")
        high: float = Field(0.7, ge=0, le=1, description="Largest share of the grid.")
        shares: int = Field(11, ge=1, description="Shares of the grid.")

        @model_validator(mode="after")
        def _ordered(self) -> "BBKD.Settings":
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
            return self

    settings: Settings

    def check(self, student: FeatureNet, teacher: nn.Module, size: tuple[int, int, int]) -> None:
        check_answers("bbkd", teacher)

    def queries(self, n_train: int, steps: int, budget: int | None) -> int:
        asked, trainings = self.plan(n_train, budget), self.settings.rounds + 1
        if steps < trainings:
            raise SettingError(
                "budget", f"{steps} updates", f"at least {trainings}, one for each training"
            )
        return sum(asked)

    def plan(self, n_train: int, budget: int | None) -> list[int]:
        """Rows asked about in each training, the real images first."""
        check_mixes(n_train)
        own, pairs = self.settings, n_train * (n_train - 1) // 2
        few = f"at most {pairs}, the pairs of {n_train} images"
        require(own.rounds <= pairs, "rounds", own.rounds, few)
        total = allowed(own.queries, budget, n_train, n_train + own.rounds)
        return [n_train, *spread(min(total - n_train, pairs), [1] * own.rounds)]

    def run(self, hands: Hands) -> None:
        real = hands.pixels()
        asked = self.plan(len(real), hands.budget)
        pools, ledger = self._pools(len(real), asked[1:], hands.rng), []
        made = hands.label("real", lambda: real)
        for number, updates in enumerate(spread(hands.steps, list(accumulate(asked)))):
            if number:
                choose = partial(self._choose, hands, real, pools[number - 1], asked[number])
                made = made + hands.label(f"round{number}", choose)
            hands.distil(made, updates)
            ledger.append(entry(hands, asked[number], updates, made))
        hands.note("rounds", ledger)

    def _pools(self, n: int, asked: Sequence[int], rng: torch.Generator) -> Sequence[Tensor]:
        """Numbers of different pairs for each round, drawn at once, so that a kill moves none."""
        pairs = n * (n - 1) // 2
        sizes = [min(self.settings.pool * rows, pairs * rows // sum(asked)) for rows in asked]
        return distinct(pairs, sum(sizes), rng).split(sizes)

    def _choose(self, hands: Hands, real: Tensor, pool: Tensor, count: int) -> Tensor:
        """The mixes of a pool that the student is least sure of, uint8 (count, C, H, W)."""
        own, shares, sure = self.settings, list[Tensor](), list[Tensor]()
        grid, (first, second) = torch.linspace(own.low, own.high, own.shares), pair(pool)
        for i, j in zip(first.split(AT_ONCE), second.split(AT_ONCE), strict=True):
            one, other = (rows.repeat_interleave(len(grid)) for rows in (i, j))
            mixes = mixed(real, one, other, grid.repeat(len(i)))
            which, confidence = least_confident(hands.predict(mixes).unflatten(0, (len(i), -1)))
            shares.append(grid[which])
            sure.append(confidence)
        chosen = torch.cat(sure).argsort(stable=True)[:count]
        return mixed(real, first[chosen], second[chosen], torch.cat(shares)[chosen])
