"""Steps that are all real and steps that are all generated, by the toss of a coin."""

import torch

from fskd.generators.schedules import Schedule, schedules


@schedules.register("alternate")
class Alternate(Schedule):
    """A step is all real with ``real_probability``, else all generated.

    Of PE (Deng, Zheng and Zhang, ECCV 2022), whose epochs are lengthened by 1/real_probability.
    """

    replaces = True

    def rows(self, total: int) -> tuple[int, int]:
        """All rows of a step are of one kind."""
        return total, total

    def all_real(self, turn: torch.Generator) -> bool:
        """The toss."""
        return torch.rand((), generator=turn).item() < self.real_probability

    def expected(self, drawn: int, found: int) -> float:
        """One batch has all or none."""
        return self.real_probability * drawn

    @property
    def step_scale(self) -> float:
        """So many steps that the real ones are as many as without generated ones."""
        return 1 / self.real_probability if self.scale_epochs else 1.0
