"""Protocols: one YAML file that stands for many runs.

A protocol has a ``base`` of settings, ``axes`` (dotted setting -> list of values, all combinations
are run) and optionally a ``chain`` of networks, teacher first: every network but the first and
last becomes a teacher assistant that is distilled from the one before it on the student's data.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from fskd.config import RunConfig
from fskd.errors import SettingError
from fskd.resolve import Raw, layered, merge, nested, read_yaml, resolve, validate
from fskd.types import Settings


class Protocol(Settings):
    """A family of runs; see the module docstring."""

    name: str
    description: str = ""
    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    chain: tuple[str, ...] = Field((), description="Networks from the teacher to the student.")

    @model_validator(mode="after")
    def _long_enough(self) -> "Protocol":
        if len(self.chain) == 1:
            raise ValueError("a chain has at least a teacher and a student")
        return self

    def expand(self, overrides: Mapping[str, Any] | None = None) -> tuple[RunConfig, ...]:
        """Every run, the last axis varying fastest; ``overrides`` win over base and axes."""
        named = {"student"} & set(overrides or {}) or "name" in (overrides or {}).get("teacher", {})
        if self.chain and named:
            raise SettingError("student or teacher", "given", "none: the chain names all networks")
        configs = []
        for point in itertools.product(*self.axes.values()):
            layer: Raw = dict(self.base)
            for axis, value in zip(self.axes, point, strict=True):
                layer = merge(layer, nested(axis, value))
            layer = merge(layer, overrides or {})
            configs.append(resolve(self._chained(layer)))
        return tuple(configs)

    def _chained(self, layer: Raw) -> Raw:
        """The settings of the last link, with the earlier ones as nested teachers."""
        if not self.chain:
            return layer
        raw = layered(layer)
        first, *assistants, student = self.chain
        teacher = merge(raw["teacher"], {"name": first})
        for level, assistant in enumerate(assistants, 2):
            teacher = {
                "name": assistant,
                "data": "subset",
                # A seed of its own, so that equal networks do not start alike.
                "seed": raw["seed"] + 1000 * level,
                "method": raw["method"],
                "generator": raw["generator"],
                "augment": raw["data"].get("augment", {}),
                "optim": raw.get("optim", {}),
                "budget": raw["budget"],
                "teacher": teacher,
            }
        return merge(layer, {"student": student, "teacher": teacher})


def read_protocol(path: Path) -> Protocol:
    """A protocol from a YAML file; settings alone are a protocol of one run."""
    raw = read_yaml(path)
    if not {"base", "axes", "chain"} & set(raw):
        raw = {"name": path.stem, "base": raw}
    return validate(Protocol, {"name": path.stem, **raw}, path.name)
