"""What several runs in one process share."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fskd.config import Runtime
from fskd.results.store import check_writable
from fskd.runs.screen import Screen
from fskd.train.alone import AnyFabric
from fskd.train.devices import launch
from fskd.types import Pool


@dataclass
class Session:
    """What several runs in one process share.

    Attributes:
        runtime: Device, folders and the like.
        screen: Where progress is shown.
        fabric: Device placement, precision and processes, made from the runtime.
        test_logits: Teacher logits on the test split by teacher; many students ask for the same.
        last_pool: The teacher outputs that a sampler saw last, and whose they are; the next seed or
            sampler mostly needs the same.
        made: Keys of the runs that were carried out here rather than found finished.
    """

    runtime: Runtime
    screen: Screen = field(default_factory=Screen)
    fabric: AnyFabric = field(init=False)
    test_logits: dict[str, Tensor] = field(default_factory=dict)
    last_pool: tuple[object, Pool] | None = None
    made: set[str] = field(default_factory=set)
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

    @property
    def main(self) -> bool:
        """True in the process that writes."""
        return self.fabric.is_global_zero

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.fabric.device
