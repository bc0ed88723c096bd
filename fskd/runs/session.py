"""What several runs in one process share."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fskd.config import Runtime
from fskd.data.health import doubts
from fskd.errors import FskdError
from fskd.results.store import check_writable
from fskd.runs.screen import Screen
from fskd.train.alone import AnyFabric
from fskd.train.devices import launch
from fskd.types import DataSplits, Pool


@dataclass
class Session:
    """What several runs in one process share.

    Attributes:
        runtime: Device, folders and the like.
        screen: Where progress is shown.
        fabric: Device placement, precision and processes, made from the runtime.
        test_logits: Teacher logits on the test split by teacher; many students ask for the same.
        train_logits: Whose they are, and teacher logits on the training images, asked last.
        last_pool: The teacher outputs that a sampler saw last, and whose they are; the next seed or
            sampler mostly needs the same.
        made: Keys of the runs that were carried out here rather than found finished.
    """

    runtime: Runtime
    screen: Screen = field(default_factory=Screen)
    fabric: AnyFabric = field(init=False)
    test_logits: dict[str, Tensor] = field(default_factory=dict)
    train_logits: tuple[str, Tensor] | None = None
    last_pool: tuple[object, Pool] | None = None
    made: set[str] = field(default_factory=set)
    _doubts: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check_writable(self.out)
        self.fabric = launch(self.runtime)
        if not self.main:
            self.screen = Screen()

    @property
    def out(self) -> Path:
        """Folder of all runs."""
        return Path(self.runtime.out).expanduser()

    def tell_once(self, line: str) -> None:
        """Shows a line unless it was shown before."""
        if line not in self._told:
            self._told.add(line)
            self.screen.say(line)

    def doubts_of(self, data: DataSplits) -> list[str]:
        """What is probably wrong with images, looked for once."""
        whose = data.train.fingerprint, data.test.fingerprint
        if whose not in self._doubts:
            self._doubts[whose] = doubts(data)
        return self._doubts[whose]

    def doubt(self, line: str) -> None:
        """Shows a line about what is probably wrong, unless it was shown before.

        Raises:
            FskdError: If runs are to stop there (``--strict``).
        """
        if self.runtime.strict:
            raise FskdError(f"{line} (an error because of --strict)")
        if line not in self._told:
            self._told.add(line)
            if self.main:
                self.screen.warn(line)

    @property
    def main(self) -> bool:
        """True in the process that writes."""
        return self.fabric.is_global_zero

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.fabric.device
