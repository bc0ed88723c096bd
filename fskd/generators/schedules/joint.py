"""Real and generated rows in every step."""

from fskd.errors import SettingError
from fskd.generators.schedules import Schedule, schedules


@schedules.register("joint")
class Joint(Schedule):
    """Every step has both."""

    def rows(self, total: int) -> tuple[int, int]:
        """The share of the rows, at least one of each kind; no real ones with a share of 1."""
        if self.share == 1:
            return total, total
        if total < 2:
            accepted = "at least 2, a real and a generated row (or generator.share: 1)"
            raise SettingError("optim.batch_size", total, accepted)
        generated = min(max(round(total * self.share), 1), total - 1)
        return total - generated, generated
