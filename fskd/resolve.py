"""From layers of raw settings to one validated RunConfig; every mistake is one clear line."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fskd.config import Component, RunConfig
from fskd.data.datasets.base import datasets
from fskd.data.samplers.base import samplers
from fskd.errors import FskdError, SettingError, suggest
from fskd.generators.base import generators
from fskd.methods.base import methods
from fskd.methods.compose import phases_of
from fskd.registry import Registry
from fskd.types import Settings

M = TypeVar("M", bound=BaseModel)
Raw = dict[str, Any]

MAX_YAML_BYTES = 1_000_000

DEFAULTS: Raw = {
    "data": {"name": "digits", "sampler": {"name": "stratified"}},
    "student": "cnn_tiny",
    "teacher": {
        "name": "cnn_small",
        "method": {"name": "ce"},
        "augment": {"affine": 1.0},
        "budget": {"epochs": 40},
    },
    "method": {"name": "kdplus"},
    "generator": {"name": "auto"},
    "budget": {"steps": 800},
    "seed": 0,
}
# Sections that are a part by name: another name drops the settings of the old one.
NAMED = {"method", "generator", "sampler"}
# Settings of which at most one holds: a stronger layer's choice drops the weaker layer's.
EXCLUSIVE = ({"fraction", "shots", "n"}, {"steps", "epochs"})


def merge(weak: Mapping[str, Any], strong: Mapping[str, Any], top: bool = True) -> Raw:
    """Deep merge; see ``NAMED`` and ``EXCLUSIVE``. A name alone stands for ``{name: ...}``.

    Args:
        weak: What holds unless ``strong`` says otherwise.
        strong: What wins.
        top: Whether these are whole layers rather than a section of them.

    Example:
        >>> merge({"a": {"steps": 5, "x": 1}}, {"a": {"epochs": 2}})
        {'a': {'x': 1, 'epochs': 2}}
    """
    merged = dict(weak)
    for rivals in EXCLUSIVE:
        if any(strong.get(name) is not None for name in rivals):
            merged = {k: v for k, v in merged.items() if k not in rivals}
    for name, value in strong.items():
        old = merged.get(name)
        if name in {*NAMED, "teacher"} or (top and name == "data"):
            old, value = ({"name": x} if isinstance(x, str) else x for x in (old, value))
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = (
                name in NAMED and "name" in old and value.get("name") not in (None, old["name"])
            )
            merged[name] = dict(value) if renamed else merge(old, value, False)
        else:
            merged[name] = value
    return merged


def parse_override(text: str) -> Raw:
    """``a.b=value`` as a nested mapping; the value is read as YAML.

    Example:
        >>> parse_override("method.temperature=2.5")
        {'method': {'temperature': 2.5}}
    """
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise SettingError("--set", f"'{text}'", "name=value, such as method.temperature=2")
    return nested(path, parse_yaml(value, f"--set {path}"))


def nested(path: str, value: object) -> Raw:
    """A dotted name and its value as a nested mapping.

    Example:
        >>> nested("a.b", 1)
        {'a': {'b': 1}}
    """
    *outer, last = path.split(".")
    mapping: Raw = {last: value}
    for name in reversed(outer):
        mapping = {name: mapping}
    return mapping


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            problem = f"'{twice}' twice in one mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML: no tags, no aliases, no key twice, bounded size."""
    if len(text) > MAX_YAML_BYTES:
        raise FskdError(f"{where}: larger than {MAX_YAML_BYTES} bytes, which no settings file is")
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise FskdError(f"{where}: YAML aliases (*{event.anchor}) are not accepted")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise FskdError(f"{where}: YAML tags ({tag}) are not accepted")
        return yaml.load(text, Loader=_OnceEach)  # a SafeLoader
    except RecursionError:
        raise FskdError(f"{where}: nested too deeply") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise FskdError(f"{where}: not valid YAML ({problem})") from None


def read_yaml(path: Path) -> Raw:
    """The mapping in a YAML file."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise FskdError(f"{path}: larger than {MAX_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FskdError(f"{path}: cannot be read ({error})") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise FskdError(f"{path}: holds no mapping of settings")
    return data


def validate(model: type[M], raw: object, prefix: str = "") -> M:
    """An instance of a settings class; the first mistake as one line.

    Args:
        model: The settings class.
        raw: A mapping, possibly with already validated parts.
        prefix: Dotted name of the section, for messages.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    setting = ".".join(filter(None, [prefix, path])) or model.__name__
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        raise SettingError(setting, "an unknown setting", suggest(str(first["loc"][-1]), known))
    message = first["msg"].removeprefix("Value error, ")
    accepted = re.sub(r"^Input should be ", "", message)
    if accepted == message:
        raise FskdError(f"{setting}: {message[0].lower()}{message[1:]}")
    raise SettingError(setting, _shown(first["input"]), accepted)


def _shown(value: object) -> str:
    """A value as it was written: text in quotes unless it is a number given as an option."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value):
        return value
    return repr(value)


def _fields_at(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """Names of the fields of the section that a path leads to."""
    for step in path:
        field = model.model_fields.get(str(step))
        inner = (
            [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        )
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return list(model.model_fields)


def component(
    registry: Registry[Any], raw: object, section: str, joined: bool = False
) -> Component:
    """A part (or several, joined by ``+``) with validated settings."""
    if isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
        raise SettingError(f"{section}.name", raw, f"the name of a {registry.kind}")
    given = {k: v for k, v in raw.items() if k != "name"}
    names = raw["name"].split("+") if joined else [raw["name"]]
    if len(set(names)) < len(names):
        raise SettingError(f"{section}.name", f"'{raw['name']}'", "each method once")
    parts = []
    for name in names:
        settings_class: type[Settings] = registry.get(name).Settings
        own = given.pop(name, {}) if len(names) > 1 or isinstance(given.get(name), Mapping) else {}
        if len(names) == 1:
            own, given = {**given, **own}, {}
        prefix = section if len(names) == 1 else f"{section}.{name}"
        parts.append((name, validate(settings_class, own, prefix)))
    if given:
        accepted = f"settings of one part, such as {section}.{names[0]}.{next(iter(given))}"
        raise SettingError(f"{section}.{next(iter(given))}", "an unknown setting", accepted)
    return Component(name=raw["name"], parts=tuple(parts))


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """One validated configuration from raw layers, weakest first, over the defaults.

    Args:
        layers: Nested mappings such as ``{"data": {"fraction": 0.25}}``.

    Raises:
        FskdError: With one line that names the setting, the value and what is accepted.

    Example:
        >>> config = resolve({"method": "kd", "data": {"fraction": 0.25}})
        >>> config.method.name, config.data.fraction, config.teacher.name
        ('kd', 0.25, 'cnn_small')
    """
    return _build(layered(*layers))


def layered(*layers: Mapping[str, Any]) -> Raw:
    """The raw settings over the defaults and the data set's defaults, not yet validated."""
    own: Raw = {}
    for layer in layers:
        own = merge(own, layer)
    data = own.get("data")
    name = data.get("name", "digits") if isinstance(data, Mapping) else data or "digits"
    if not isinstance(name, str):
        raise SettingError("data.name", name, f"one of {', '.join(datasets.names())}")
    if not isinstance(data, Mapping):
        own["data"] = {"name": name}
    return merge(merge(DEFAULTS, datasets.get(name).defaults), own)


def _build(raw: Raw) -> RunConfig:
    seed = raw.get("seed", 0)
    method = component(methods, raw["method"], "method", joined=True)
    data = dict(raw["data"])
    data["sampler"] = component(samplers, data["sampler"], "data.sampler")
    data.setdefault("split_seed", seed)
    teacher = raw.get("teacher")
    config = {
        **raw,
        "data": data,
        "method": method,
        "generator": _generator(raw.get("generator"), method, "generator"),
        "teacher": None if teacher is None else _teacher(teacher, "teacher"),
    }
    _check_students(config, method)
    if needs_teacher(method) and teacher is None:
        raise SettingError("teacher", None, f"a teacher, since {method.name} needs one")
    resolved = validate(RunConfig, config)
    # Checked in any case, but a run without teacher does not depend on it.
    return resolved if needs_teacher(method) else resolved.model_copy(update={"teacher": None})


def _generator(raw: object, method: Component, section: str) -> Component | None:
    """The generator asked for, the method's own with ``auto``, or None."""
    name = raw.get("name") if isinstance(raw, Mapping) else raw
    if name in (None, "none"):
        return None
    rest = {k: v for k, v in raw.items() if k != "name"} if isinstance(raw, Mapping) else {}
    uses = any(phase.reads.generated for phase in phases_of(method.parts))
    if name == "auto":
        own = [methods.get(part).default_generator for part, _ in method.parts]
        name = next((g for g in own if g), None)
        if name is None:
            return None
    elif not uses:
        accepted = f"none: {method.name} uses no generated points"
        raise SettingError(section, f"'{name}'", accepted)
    return component(generators, {**rest, "name": name}, section)


def _teacher(raw: object, section: str) -> object:
    """The teacher's section with its parts resolved, its own teachers included."""
    if not isinstance(raw, Mapping):
        raise SettingError(section, raw, "a network's name or a mapping of settings")
    method = component(methods, raw.get("method", "ce"), f"{section}.method", joined=True)
    inner = None
    if needs_teacher(method):
        if raw.get("teacher") is None:
            accepted = f"a teacher of its own, since {method.name} needs one"
            raise SettingError(f"{section}.teacher", None, accepted)
        inner = _teacher(raw["teacher"], f"{section}.teacher")
    generator = _generator(raw.get("generator", "auto"), method, f"{section}.generator")
    return {**raw, "method": method, "generator": generator, "teacher": inner}


def needs_teacher(method: Component) -> bool:
    """True if some phase reads the teacher."""
    return any(phase.reads.teacher for phase in phases_of(method.parts))


def students_needed(method: Component) -> int:
    """How many students the method trains together."""
    return max(methods.get(name).students_needed(settings) for name, settings in method.parts)  # type: ignore[arg-type]


def _check_students(config: Raw, method: Component) -> None:
    peers, needed = config.get("peers") or (), students_needed(method)
    if not isinstance(peers, list | tuple):
        raise SettingError("peers", repr(peers), "a list of networks' names")
    if peers and len(peers) != needed - 1:
        accepted = f"{needed - 1} names ({method.name} trains {needed} student networks)"
        raise SettingError("peers", list(peers), accepted)
