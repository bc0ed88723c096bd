"""Layers of raw settings, not yet validated: merging them, and reading them from YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fskd.errors import FskdError, SettingError

Raw = dict[str, Any]

MAX_YAML_BYTES = 1_000_000
# Sections that are a part by name: another name drops the settings of the old one.
NAMED = {"method", "generator", "sampler"}
# Settings of which at most one holds: a stronger layer's choice drops the weaker layer's.
SIZE, LENGTH = ("fraction", "shots", "n"), ("steps", "epochs")
EXCLUSIVE = (SIZE, LENGTH)
# Settings of the data that change no result.
PLACES = ("root", "download", "splits", "cache_gib")


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
        if name in {*NAMED, "teacher"} or (top and name in ("data", "student")):
            old, value = ({"name": x} if isinstance(x, str) else x for x in (old, value))
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = (
                name in NAMED and "name" in old and value.get("name") not in (None, old["name"])
            )
            merged[name] = dict(value) if renamed else merge(old, value, False)
        else:
            merged[name] = value
    return merged


def given_together(values: Mapping[str, Any]) -> list[str]:
    """Names of settings with a value although at most one of them may have one; empty if none have.

    Example:
        >>> given_together({"fraction": 0.1, "shots": None, "n": 5, "steps": 8})
        ['fraction', 'n']
    """
    for rivals in EXCLUSIVE:
        given = [name for name in rivals if values.get(name) is not None]
        if len(given) > 1:
            return given
    return []


def refuse_together(values: Mapping[str, Any], dashes: str = "--") -> None:
    """SettingError for options, or arguments without ``dashes``, that are ``given_together``."""
    if given := given_together(values):
        names = " and ".join(f"{dashes}{name}" for name in given)
        raise SettingError(names, "together", "only one of them")


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
