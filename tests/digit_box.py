"""A black box that knows the training digits, and remembers how many rows it was asked about."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fskd import distill
from fskd.data.datasets.base import load
from fskd.results.store import Result

ASKED: list[Tensor] = []


@lru_cache
def known() -> tuple[Tensor, Tensor]:
    train = load("digits").train
    return torch.as_tensor(train.images).flatten(1) / 255, F.one_hot(train.targets, 10).float()


def ask(images: Tensor) -> Tensor:
    """Classes of near training images, weighted by a Gaussian; right for 98 % of test images."""
    rows, classes = known()
    near = (-torch.cdist(images.flatten(1), rows).square() / 0.5).softmax(1)
    ASKED.append((images * 255).round().to(torch.uint8))
    return near @ classes


def go(out: Path | None, method: Any, shots: int = 2, steps: int = 10, **more: Any) -> Result:
    """A run with the black box; ``queries`` and ``runtime`` are settings, all else arguments."""
    settings: dict[str, Any] = {"teacher": {"queries": more.pop("queries", None)}}
    settings["runtime"] = {"save_every": 0.0, "log_every": 2, **more.pop("runtime", {})}
    own = {"name": method} if isinstance(method, str) else method
    settings["method"] = own
    return distill(
        ask, "cnn_tiny", "digits", method=own["name"], shots=shots, steps=steps, out=out,
        device="cpu", settings=settings, quiet=True, **more,
    )  # fmt: skip


def rows() -> Tensor:
    """What it was asked about since the list was cleared, without the probe's blank images."""
    seen = torch.cat(ASKED)
    return seen[seen.flatten(1).amax(1) > seen.flatten(1).amin(1)]


def killed_at(name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function of ``module:name`` is killed in a call, counted from 1; gives what heals it."""
    module, _, attribute = name.partition(":")
    whole = getattr(__import__(module, fromlist=[attribute]), attribute)
    calls = 0

    def fails(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return whole(*args, **more)

    monkeypatch.setattr(f"{module}.{attribute}", fails)
    return lambda: monkeypatch.setattr(f"{module}.{attribute}", whole)
