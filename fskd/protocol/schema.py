"""The format of a protocol and its expansion into runs.

Settings come from ``base``; ``arms`` are what is compared (a name and the settings that make it),
``axes`` are what all arms go through (data sizes, pairs of networks, samplers) and ``seeds`` repeat
everything with other subsets and initialisations. A ``chain`` of networks, teacher first, makes
every network between the first and the last a teacher assistant, distilled from the one before it
on the student's data.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, StringConstraints, field_validator, model_validator

from fskd.config import RunConfig
from fskd.errors import FskdError, SettingError
from fskd.options import OPTIONS
from fskd.protocol.clashes import leaves, refuse_clashes
from fskd.raw import NAMED, SIZE, Raw, merge, nested, read_yaml
from fskd.resolve import layered, link_of, resolve, validate
from fskd.types import Settings

MAX_SEEDS, MAX_RUNS = 1000, 20_000
# Axes may be written without their section.
SHORT = {name: OPTIONS[name].setting for name in (*SIZE, "dataset", "sampler", "unlabelled")}
# Axes that say on what the arms are compared, and so are no part of an arm's name.
TASKS = {"pair", "student", "seed", "data.name", *(SHORT[name] for name in SIZE)}
# Which setting of the budget a mode leaves out.
REFUSED = {"fixed_updates": "epochs", "fixed_epochs": "steps"}

ArmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=40)]


class Run(NamedTuple):
    """One run of a protocol.

    Attributes:
        arm: What it is called in tables and curves; no part of the settings or their key.
        config: Its settings.
    """

    arm: str
    config: RunConfig


class Protocol(Settings):
    """A family of runs; see the module docstring."""

    name: Annotated[str, StringConstraints(pattern=r"^\w[\w .+-]*$", max_length=80)]
    description: str = ""
    mode: Literal["fixed_updates", "fixed_epochs"] | None = Field(
        None, description="What all data sizes have in common: budget in steps, or in epochs."
    )
    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    arms: dict[ArmName, dict[str, Any]] = Field(default_factory=dict)
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = Field(
        None, description="A list, or N for 0 to N-1; of split and initialisation, for all arms."
    )
    chain: tuple[str, ...] = Field((), description="Networks from the teacher to the student.")

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        if isinstance(given, int) and not isinstance(given, bool):
            if not 1 <= given <= MAX_SEEDS:
                raise ValueError(f"Input should be a number from 1 to {MAX_SEEDS}, or a list")
            return range(given)
        if isinstance(given, list) and len({str(seed) for seed in given}) < len(given):
            raise ValueError("Input should be a list in which no seed comes twice")
        return given

    @field_validator("axes")
    @classmethod
    def _named_in_full(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        full = {SHORT.get(name, name): values for name, values in axes.items()}
        if len(full) < len(axes):
            raise ValueError("an axis comes twice, once without its section")
        for name, values in full.items():
            given = [json.dumps(_plain(name, v), sort_keys=True, default=str) for v in values]
            if twice := next((v for v in given if given.count(v) > 1), None):
                raise SettingError(f"axes.{name}", f"{twice} twice", "each value once")
            if name == "pair":
                full[name] = [_pair(value) for value in values]
        return full

    @model_validator(mode="after")
    def _consistent(self) -> "Protocol":
        if len(self.chain) == 1:
            raise ValueError("a chain has at least a teacher and a student")
        sections = self._sections()
        refuse_clashes(sections, frozenset({"base", *(f"arms.{name}" for name in self.arms)}))
        refused = f"budget.{REFUSED[self.mode]}" if self.mode else None
        for section, settings in sections.items():
            if refused in settings:
                accepted = f"none in the mode {self.mode}"
                raise SettingError(f"{section}, {refused}", "a value", accepted)
        sizes = [len(values) for values in self.axes.values()]
        total = math.prod(sizes) * max(len(self.arms), 1) * len(self.seeds or [0])
        if total > MAX_RUNS:
            raise ValueError(f"it stands for {total} runs; at most {MAX_RUNS} are accepted")
        return self

    def _sections(self) -> dict[str, set[str]]:
        """What every section sets."""
        sections = {"base": leaves(self.base)}
        sections |= {f"arms.{name}": leaves(layer) for name, layer in self.arms.items()}
        for name, values in self.axes.items():
            sections[f"axes.{name}"] = set().union(*(leaves(_layer(name, v)) for v in values))
        if self.seeds:
            sections["seeds"] = {"seed"}
        if self.chain:
            sections["chain"] = {"student", "teacher.name"}
        return sections

    def expand(self, overrides: Mapping[str, Any] | None = None) -> tuple[RunConfig, ...]:
        """The settings of every run; see ``runs``."""
        return tuple(run.config for run in self.runs(overrides))

    def runs(self, overrides: Mapping[str, Any] | None = None) -> tuple[Run, ...]:
        """Every run once: axes in the order of the file, then arms, then seeds, varying fastest.

        Args:
            overrides: A layer that wins over base and axes, and over the protocol's seeds.

        Raises:
            FskdError: One line about the first setting that does not fit.
        """
        given = dict(overrides or {})
        self._check_overrides(given)
        found: dict[str, tuple[str | None, Run]] = {}
        for arm, layer, label in self._points("seed" in given):
            config = resolve(self._chained(merge(layer, given)))
            self._check_mode(config)
            run = Run(label or config.method.name, config)
            known, _ = found.setdefault(config.model_dump_json(), (arm, run))
            if known != arm:
                raise FskdError(f"arms.{known} and arms.{arm} have the same settings")
        return tuple(run for _, run in found.values())

    def _points(self, seeded: bool) -> Iterator[tuple[str | None, Raw, str]]:
        """(arm, settings, name for tables) of every combination."""
        arms: list[tuple[str | None, Raw]] = [*self.arms.items()] or [(None, {})]
        seeds = [None] if seeded or self.seeds is None else self.seeds
        for values in itertools.product(*self.axes.values()):
            point = list(zip(self.axes, values, strict=True))
            for (arm, own), seed in itertools.product(arms, seeds):
                layer = merge(self.base, own)
                for axis, value in point:
                    layer = merge(layer, _layer(axis, value))
                parts = [_label(axis, value) for axis, value in point if axis not in TASKS]
                label = ", ".join(parts if arm is None else [arm, *parts])
                yield arm, layer if seed is None else merge(layer, {"seed": seed}), label

    def _check_overrides(self, given: Raw) -> None:
        named = leaves(given)
        if self.chain and named & {"student", "teacher.name"}:
            raise SettingError("student or teacher", "given", "none: the chain names all networks")
        for arm, layer in self.arms.items():
            try:
                refuse_clashes({f"arms.{arm}": leaves(layer), "given": named}, frozenset())
            except SettingError as error:
                accepted = f"none here: the arm '{arm}' of {self.name} sets it"
                raise SettingError(str(error.value), "given", accepted) from None

    def _check_mode(self, config: RunConfig) -> None:
        if self.mode is None:
            return
        refused = REFUSED[self.mode]
        if (value := getattr(config.budget, refused)) is not None:
            other = "steps" if refused == "epochs" else "epochs"
            accepted = f"budget.{other}, since the mode is {self.mode}"
            raise SettingError(f"budget.{refused}", f"{value:g}", accepted)

    def _chained(self, layer: Raw) -> Raw:
        """The settings of the last link, with the earlier ones as nested teachers."""
        if not self.chain:
            return layer
        raw = layered(layer)
        first, *assistants, student = self.chain
        teacher = merge(raw["teacher"], {"name": first})
        for level, assistant in enumerate(assistants, 2):
            teacher = link_of(raw, assistant, level, teacher, raw["method"])
        return merge(layer, {"student": student, "teacher": teacher})


def _plain(axis: str, value: Any) -> Any:
    """A value of an axis in the long form, so that equal values look equal."""
    if axis == "pair" and isinstance(value, list) and len(value) == 2:
        value = {"teacher": value[0], "student": value[1]}
    if axis.rpartition(".")[2] in {*NAMED, "teacher"} and isinstance(value, str):
        return {"name": value}
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _pair(value: Any) -> Raw:
    found = _plain("pair", value)
    if not isinstance(found, dict) or set(found) != {"teacher", "student"}:
        raise SettingError("axes.pair", value, "[teacher, student] or {teacher: ..., student: ...}")
    return found


def _layer(axis: str, value: Any) -> Raw:
    return value if axis == "pair" else nested(axis, value)


def _label(axis: str, value: Any) -> str:
    """How a value of an axis is shown as a part of an arm's name."""
    section = axis.rpartition(".")[2]
    name = value.get("name") if isinstance(value, dict) else value
    if section in NAMED and isinstance(name, str) and name == value:
        return name
    return f"{section if section in NAMED else axis}={json.dumps(value, default=str)}".replace(
        '"', ""
    )


def read_protocol(path: Path) -> Protocol:
    """A protocol from a YAML file; settings alone are a protocol of one run."""
    raw = read_yaml(path)
    if not set(Protocol.model_fields) & set(raw):
        raw = {"base": raw}
    if misplaced := sorted(set(RunConfig.model_fields) & set(raw)):
        name = f"{path.name}.{misplaced[0]}"
        raise SettingError(name, "a setting beside the sections", f"it under base: {misplaced[0]}:")
    return validate(Protocol, {"name": path.stem, **raw}, path.name)
