"""Recorded values of published reference code, and what method tests build networks' maps from.

The files are read from ``$FSKD_GOLDEN``, by default ``shared/golden`` beside the repository; a test
whose file is missing is skipped.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fskd.methods.base import Step
from fskd.methods.words import Terms
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

FOLDER = Path(os.environ.get("FSKD_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden"))


class Case:
    """One file: inputs as float64 leaves, expected values, and comparison at its tolerances."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no recorded values in {FOLDER}; set FSKD_GOLDEN")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(arrays.pop("meta_json").item())
        self.rtol, self.atol = float(meta["rtol"]), float(meta["atol"])
        self.groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, array in arrays.items():
            group, _, rest = key.partition("__")
            self.groups[group][rest] = torch.from_numpy(array)
        for rest in self.groups["grad"]:
            self.groups["in"][rest].requires_grad_(True)

    def __getitem__(self, name: str) -> Tensor:
        """An input."""
        return self.groups["in"][name]

    def hp(self, name: str) -> Any:
        """A hyper-parameter as a Python number."""
        return self.groups["hp"][name].item()

    def stages(self, name: str) -> list[Tensor]:
        """Inputs ``name_0``, ``name_1``, ..."""
        found = self.groups["in"]
        return [found[f"{name}_{i}"] for i in range(len(found)) if f"{name}_{i}" in found]

    def close(self, actual: Tensor, name: str) -> None:
        """Compare a value with ``out__<name>``."""
        expected = self.groups["out"][name].to(actual)
        torch.testing.assert_close(actual.detach(), expected, rtol=self.rtol, atol=self.atol)

    def loss(
        self,
        loss: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
        ours: Callable[[str], str] = str,
    ) -> None:
        """Compare the loss and all gradients, at ten times rtol.

        Args:
            loss: The loss.
            parameters: Parameters by our names.
            ours: Our name of a recorded parameter.
        """
        self.close(loss, "loss")
        loss.backward()
        pairs = [(self[name].grad, g) for name, g in self.groups["grad"].items()]
        for name, g in self.groups["gradp"].items():
            assert parameters is not None
            pairs.append((parameters[ours(name)].grad, g))
        assert pairs
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, rtol=10 * self.rtol, atol=self.atol)

    def weights(self, ours: Callable[[str], str]) -> dict[str, Tensor]:
        """Recorded weights by our names."""
        return {ours(name): value for name, value in self.groups["param"].items()}


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random maps."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype)


def taps(
    stages: Sequence[Tensor], stem: tuple[int, ...] = (), norms: tuple[Any, ...] = ()
) -> TapShapes:
    """Tap shapes of a network with ten classes that gave these maps."""
    sizes = tuple(tuple(stage.shape[1:]) for stage in stages)
    return TapShapes((10,), (4,), sizes, sizes, stem, norms)


def shapes(student: TapShapes, teacher: TapShapes | None, classes: int = 10) -> Shapes:
    """Shapes for a method with eight examples."""
    return Shapes(classes, 8, student, teacher, torch.arange(8) % 2)


def real_batch(labels: Tensor) -> Batch:
    """A batch of real rows; inputs are not looked at."""
    return Batch(torch.zeros(len(labels), 1, 2, 2), labels, torch.arange(len(labels)))


def step(batch: Batch, fraction: float = 0.0, **outputs: Outputs) -> Step:
    """What the passes gave."""
    return Step(outputs, batch, Progress(fraction=fraction))


def weighted(terms: Terms) -> Tensor:
    """Sum of the terms by their weights, not normalised."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()
