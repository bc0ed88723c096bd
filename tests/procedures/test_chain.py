"""Chains: every missing link once, from the first on; assistants and generations by a method."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fskd.config import RunConfig
from fskd.data.datasets.base import datasets
from fskd.errors import FskdError, SettingError
from fskd.models.catalog import build
from fskd.procedures.takd import medium
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs import runner
from fskd.runs.images import load_data
from fskd.runs.prepare import NOTHING_GIVEN
from fskd.runs.session import Session
from fskd.config import Runtime

SHORT = {"budget": {"steps": 3}, "data": {"fraction": 0.05}}


def chained() -> RunConfig:
    """cnn_tiny from cnn_medium from cnn_small."""
    first = {"name": "cnn_small", "method": "ce", "budget": {"steps": 2}}
    assistant = {"name": "cnn_medium", "method": "kd", "budget": {"steps": 2}, "teacher": first}
    return resolve({"student": "cnn_tiny", "method": "kd", "teacher": assistant})
