"""Fixtures for the tests of networks, taps and weights."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

SHARED = Path(__file__).parents[3] / "shared"


def _json(variable: str, default: Path, name: str) -> Any:
    path = Path(os.environ.get(variable, default)) / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ${variable} nor in its default folder")
    return json.loads(path.read_text())["models"]


@pytest.fixture(scope="session")
def zoo_state_dicts() -> dict[str, dict[str, list[int]]]:
    """Keys and shapes of the public networks, by our names."""
    aliases = {
        "ResNet50": "resnet50",
        "MobileNetV2": "mobilenetv2",
        "ShuffleV1": "shufflenetv1",
        "ShuffleV2": "shufflenetv2",
    }
    public = _json("FSKD_SHARED", SHARED, "zoo_state_dicts.json")
    return {aliases.get(name, name): state for name, state in public.items()}


@pytest.fixture(scope="session")
def zoo_outputs() -> dict[str, Any]:
    """Recorded outputs of four public networks."""
    folder = Path(os.environ.get("FSKD_SHARED", SHARED)) / "golden"
    return _json("FSKD_GOLDEN", folder, "zoo_outputs.json")


@pytest.fixture
def draw_weights():
    """Fills a network with the weights that the recorded outputs belong to."""

    def fill(net: nn.Module, seed: int) -> None:
        generator = np.random.RandomState(seed)
        state = net.state_dict()
        for key in sorted(state):
            shape = tuple(state[key].shape)
            if key.endswith("num_batches_tracked"):
                values = np.zeros(shape)
            else:
                values = _scaled(key, shape, generator.standard_normal(shape))
            state[key] = torch.from_numpy(np.asarray(values))
        net.load_state_dict(state)

    return fill


def _scaled(key: str, shape: tuple[int, ...], values: np.ndarray) -> np.ndarray:
    if key.endswith("running_var"):
        return np.abs(values) + 0.5
    if len(shape) > 1:
        return values * np.sqrt(2 / np.prod(shape[1:]))
    return 0.1 * values + float(key.endswith("weight"))
