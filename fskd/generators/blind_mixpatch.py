"""Patch-wise mixes from the region in which the student differs most from its teacher."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from fskd.errors import TrainingError
from fskd.generators.base import GeneratorSettings, generators
from fskd.generators.mixpatch import MixPatch, MixPatchSettings, Region, Side, patch_sides
from fskd.losses.targets import kl_divergence
from fskd.models.taps import LOGITS
from fskd.types import Tools


class BlindMixPatchSettings(MixPatchSettings):
    """Where the search begins (``alpha``, ``side``), among what it chooses, and how often."""

    alphas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.1, 0.5, 1.0), description="To choose from."
    )
    sides: tuple[Side, ...] = Field(
        ("whole", "half"),
        description="To choose from; the first alpha with the first side is too near real rows.",
    )
    every: int = Field(
        50, ge=1, description="Epochs between searches; lengthened with scale_epochs."
    )
    search_temperature: float = Field(4.0, gt=0, description="Of the divergence that is compared.")

    @field_validator("alphas", "sides")
    @classmethod
    def _distinct(cls, several: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(several)) < len(several):
            raise ValueError("every value once")
        return several

    @model_validator(mode="after")
    def _choice(self) -> "BlindMixPatchSettings":
        if len(self.alphas) * len(self.sides) < 3:
            raise ValueError("alphas and sides need three pairs or more: the first is left out")
        return self


@generators.register("blind_mixpatch")
class BlindMixPatch(MixPatch):
    """``mixpatch`` whose alpha and patch side are searched for while training goes on.

    Every ``every`` epochs one pass over the training rows asks, for every alpha of ``alphas`` with
    every side of ``sides`` but the first with the first, how far the student is from the teacher,
    (alpha, side) = argmax KD_T(s(x~), t(x~)), with the student in eval mode and without gradient.
    The pair is then used until the next search. Each search is said in a line, and is a record of
    ``Result.searches``. What it asks the teacher counts as queries; the student's rows, which see
    no backward pass, are in the record alone.

    Blind-region search of PE (Deng, Zheng and Zhang, *Personalized Education: Blind Knowledge
    Distillation*, ECCV 2022, doi 10.1007/978-3-031-19830-4_16). Differences: sides are in relation
    to the image (CIFAR's 32 and 16 are ``whole`` and ``half``); the mean over batches is compared,
    not the sum, which has the same largest; a divergence that is not finite is an error; the search
    comes after ``every`` complete epochs (the code's comes before the last of them), with more rows
    in a step than in an epoch with the first step after it is due.
    """

    Settings: ClassVar[type[GeneratorSettings]] = BlindMixPatchSettings
    settings: BlindMixPatchSettings
    asks = True

    def __init__(self, settings: GeneratorSettings | None = None) -> None:
        super().__init__(settings)
        own = self.settings
        self.regions: list[Region] = list(product(own.alphas, own.sides))[1:]
        self.every = max(int(own.every * self.schedule.step_scale), 1)
        self._found: list[dict[str, Any]] = []

    @property
    def found(self) -> Sequence[Mapping[str, Any]]:
        """Records of ``epoch``, ``alpha``, ``side``, ``divergence``, and ``rows`` asked about."""
        return self._found

    @property
    def region(self) -> Region:
        """Alpha and side that the last search chose."""
        last = self._found[-1] if self._found else self.settings.model_dump()
        return last["alpha"], last["side"]

    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        for side in self.settings.sides:
            patch_sides(side, shape, "generator.sides")

    def passes(self, before: int, epoch: int) -> int:
        return len(self.regions) if epoch // self.every > before // self.every else 0

    def on_epoch(self, tools: Tools) -> None:
        epoch = tools.progress.epoch
        if not self.passes(self._found[-1]["epoch"] if self._found else 0, epoch):
            return
        means, rows = self._divergences(tools)
        if not means:
            return  # no row has a partner
        for (alpha, side), mean in means.items():
            if not math.isfinite(mean):
                where = f"with alpha {alpha:g} and side {side}"
                raise TrainingError(f"epoch {epoch}: the divergence {where} is {mean}")
        alpha, side = best = max(means, key=lambda region: means[region])
        record = {"alpha": alpha, "side": side, "divergence": means[best], "rows": rows}
        self._found.append({"epoch": epoch, **record})
        chosen = f"alpha {alpha:g}, side {side} (divergence {means[best]:.4g})"
        tools.say(f"epoch {epoch}: student and teacher differ most on mixes of {chosen}")

    def _divergences(self, tools: Tools) -> tuple[dict[Region, float], int]:
        """Mean divergence in each region, and how many rows that took; nothing without pairs."""
        own, sums, rows, batches = self.settings, dict[Region, Tensor](), 0, 0
        shared: dict[str, Any] = {"share": 1, "pairs": own.pairs, "lam_per": own.lam_per}
        mixers = {
            (alpha, side): MixPatch(MixPatchSettings(alpha=alpha, side=side, **shared))
            for alpha, side in self.regions
        }
        for batch in tools.batches():
            made = {region: mixer(batch, tools.rng) for region, mixer in mixers.items()}
            if any(one is batch for one in made.values()):
                continue
            batches += 1
            for region, one in made.items():
                ours = tools.ask("student", one.inputs, LOGITS).logits
                theirs = tools.ask("teacher", one.inputs, LOGITS).logits
                loss = kl_divergence(ours, theirs, own.search_temperature)
                sums[region] = sums[region] + loss if region in sums else loss
                rows += len(one.inputs)
        return {region: (total / batches).item() for region, total in sums.items()}, rows

    def state_dict(self) -> dict[str, Any]:
        return {"found": list(self._found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._found = list(state["found"])
