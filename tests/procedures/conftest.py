"""Teachers that tests of procedures share."""

from pathlib import Path

import pytest
from few import Trained


@pytest.fixture(scope="session")
def trained(out: Path) -> Trained:
    """A resnet14."""
    return Trained(out, "resnet14", 100)


@pytest.fixture(scope="session")
def narrow(out: Path) -> Trained:
    """A cnn_small."""
    return Trained(out, "cnn_small", 60)
