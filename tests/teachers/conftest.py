"""What tests of teachers share: the functions can be imported, and what they saw is empty."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fskd.data.datasets.base import load
from fskd.types import DataSplits


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Images that the black box was shown."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import boxes

    boxes.SEEN.clear()
    return boxes.SEEN


@pytest.fixture(scope="session")
def digits() -> DataSplits:
    return load("digits")


@pytest.fixture
def table(tmp_path: Path, digits: DataSplits) -> Path:
    """Probabilities of the training digits: 0.91 for the class itself."""
    targets = digits.train.targets.numpy()
    probs = np.full((len(targets), 10), 0.01)
    probs[np.arange(len(targets)), targets] = 0.91
    path = tmp_path / "probs.npz"
    np.savez(path, probs=probs)
    return path


@pytest.fixture
def tiny_kd(tiny: dict[str, Any]) -> dict[str, Any]:
    return {**tiny, "method": "kd"}
