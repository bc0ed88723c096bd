"""Training state: saved at one stroke, read without running code."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fskd.errors import FskdError
from fskd.results.store import replacing
from fskd.train.task import DistillTask
from fskd.train.watch import Counts


class State(NamedTuple):
    """What a resumed run needs beside its settings."""

    task: dict[str, Any]
    optimizers: list[dict[str, Any]]
    counts: Counts
    generator: dict[str, Any]


def save_state(
    path: Path,
    task: DistillTask,
    optimizers: list[torch.optim.Optimizer],
    counts: Counts,
    generator: dict[str, Any],
) -> None:
    """Writes the state; a kill at any moment leaves the old file or the new one."""
    state = {
        "task": task.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "counts": asdict(counts),
        "generator": generator,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> State | None:
    """The saved state, or None if there is none.

    Raises:
        FskdError: If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        counts = Counts(**raw.pop("counts"))
        return State(counts=counts, **raw)
    except (pickle.UnpicklingError, RuntimeError, TypeError, KeyError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FskdError(f"{path}: not a saved state ({reason}); --force starts anew") from None
