"""From layers of raw settings to one validated RunConfig; every mistake is one clear line."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fskd.config import RunConfig, TeacherConfig
from fskd.data.datasets.base import datasets
from fskd.data.samplers.base import samplers
from fskd.errors import FskdError, SettingError, suggest
from fskd.generators.base import generators
from fskd.methods.base import methods
from fskd.methods.compose import described
from fskd.procedures.base import Procedure, procedure_of
from fskd.raw import Raw, merge
from fskd.registry import Registry
from fskd.settings import UNLABELLED, Component, DataConfig
from fskd.types import Settings

M = TypeVar("M", bound=BaseModel)

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
    suited = merge(datasets.get(name).defaults, _sampler_defaults(own["data"]))
    suited = merge(suited, _method_defaults(own.get("method")))
    return merge(merge(DEFAULTS, suited), own)


def _sampler_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run settings that suit the sampler, if it is named."""
    sampler = data.get("sampler")
    name = sampler.get("name") if isinstance(sampler, Mapping) else sampler
    return samplers.get(name).defaults if isinstance(name, str) else {}


def _method_defaults(method: object) -> Raw:
    """Run settings that suit the methods, if they are named."""
    name = method.get("name") if isinstance(method, Mapping) else method
    found: Raw = {}
    for part in name.split("+") if isinstance(name, str) else ():
        found = merge(found, methods.get(part).defaults)
    return found


def _sampler(data: Raw) -> Component:
    """The sampler; ``data.ways`` stands for ``data.sampler.ways``, and is taken out of ``data``."""
    sampler = component(samplers, data["sampler"], "data.sampler")
    own = data["sampler"] if isinstance(data["sampler"], Mapping) else {}
    moved = {}
    for name in [field for field in data if field not in DataConfig.model_fields]:
        owners = [s for s in samplers.names() if name in samplers.get(s).Settings.model_fields]
        if sampler.name in owners and name not in own:
            moved[name] = data.pop(name)
        elif sampler.name in owners:
            raise SettingError(f"data.{name} and data.sampler.{name}", "both", "one of them")
        elif owners:
            accepted = f"no such setting unless the sampler is {' or '.join(owners)}"
            raise SettingError(f"data.{name}", data[name], accepted)
    return component(samplers, {**own, "name": sampler.name, **moved}, "data")


def _build(raw: Raw) -> RunConfig:
    seed = raw.get("seed", 0)
    method = _method(raw["method"], "method")
    data = dict(raw["data"])
    data["sampler"] = _sampler(data)
    data.setdefault("split_seed", seed)
    teacher = _chained(raw, method)
    config = {
        **raw,
        **_student(raw["student"]),
        "data": data,
        "method": method,
        "generator": _generator(raw.get("generator"), method, "generator"),
        "teacher": None if teacher is None else _teacher(teacher, "teacher"),
    }
    _check_students(config, method)
    if needs_teacher(method) and teacher is None:
        raise SettingError("teacher", None, f"a teacher, since {method.name} needs one")
    resolved = validate(RunConfig, config)
    _check_unlabelled(resolved)
    _check_averages(resolved)
    # Checked in any case, but a run without teacher does not depend on it.
    return resolved if uses_teacher(resolved) else resolved.model_copy(update={"teacher": None})


def _method(raw: object, section: str) -> Component:
    """A method, or several that are no procedures."""
    found = component(methods, raw, section, joined=True)
    for name, _ in found.parts if len(found.parts) > 1 else ():
        if issubclass(methods.get(name), Procedure):
            raise SettingError(f"{section}.name", f"'{found.name}'", f"{name} alone")
    return found


def _chained(raw: Raw, method: Component) -> object:
    """The teacher's section, with the links that a procedure puts between teacher and student.

    A teacher that has a teacher is a chain already.
    """
    teacher, student = raw.get("teacher"), _student(raw["student"])["student"]
    one = procedure(method)
    if one is None or not isinstance(teacher, Mapping):
        return teacher
    if teacher.get("teacher") is not None or not isinstance(teacher.get("name"), str):
        return teacher
    for level, link in enumerate(one.links(teacher["name"], student), 2):
        teacher = link_of(raw, link, level, teacher, one.hop)
    return teacher


def link_of(raw: Raw, name: str, level: int, teacher: Mapping[str, Any], method: object) -> Raw:
    """The section of a teacher assistant that learns as the student does, on the same examples.

    Args:
        raw: The run's settings.
        name: The assistant's network.
        level: 2 for the one behind the teacher, and so on.
        teacher: The section of its own teacher.
        method: How it learns.
    """
    return {
        "name": name,
        "data": "subset",
        # A seed of its own, so that equal networks do not start alike.
        "seed": raw["seed"] + 1000 * level,
        "method": method,
        "generator": raw.get("generator"),
        "augment": raw["data"].get("augment", {}),
        "optim": raw.get("optim", {}),
        "budget": raw["budget"],
        "teacher": teacher,
    }


def _student(raw: object) -> Raw:
    """The student's section as settings of the run."""
    if not isinstance(raw, Mapping):
        return {"student": raw}
    known = {"name": "student", "init": "student_init", "taps": "student_taps"}
    for name in raw:
        if name not in known:
            raise SettingError(f"student.{name}", "an unknown setting", suggest(name, known))
    return {known[name]: value for name, value in raw.items()}


def _generator(raw: object, method: Component, section: str) -> Component | None:
    """The generator asked for, the method's own with ``auto``, or None."""
    name = raw.get("name") if isinstance(raw, Mapping) else raw
    if name in (None, "none"):
        return None
    rest = {k: v for k, v in raw.items() if k != "name"} if isinstance(raw, Mapping) else {}
    uses = any(stretch.generated for stretch in described(method.parts).stretches())
    if name == "auto":
        own = [methods.get(part).default_generator for part, _ in method.parts]
        name = next((g for g in own if g), None)
        if name is None:
            return None
    elif not uses:
        accepted = f"none: {method.name} uses no generated points"
        raise SettingError(section, f"'{name}'", accepted)
    found = component(generators, {**rest, "name": name}, section)
    if generators.get(found.name).asks and not needs_teacher(method):
        accepted = f"one that asks no teacher: {method.name} has none"
        raise SettingError(section, f"'{found.name}'", accepted)
    return found


def _teacher(raw: object, section: str) -> object:
    """The teacher's section with its parts resolved, its own teachers included."""
    if not isinstance(raw, Mapping):
        raise SettingError(section, raw, "a network's name or a mapping of settings")
    if raw.get("table") is not None:
        raw = {**raw, "name": "table"}  # whatever network it is from
    method = _method(raw.get("method", "ce"), f"{section}.method")
    inner = None
    if who := _who_needs_unlabelled(method):
        accepted = f"a method that learns from labels alone: {who} needs unlabelled images"
        raise SettingError(f"{section}.method", f"'{method.name}'", accepted)
    if needs_teacher(method):
        if raw.get("teacher") is None:
            accepted = f"a teacher of its own, since {method.name} needs one"
            raise SettingError(f"{section}.teacher", None, accepted)
        inner = _teacher(raw["teacher"], f"{section}.teacher")
    generator = _generator(raw.get("generator", "auto"), method, f"{section}.generator")
    return {**raw, "method": method, "generator": generator, "teacher": inner}


def _check_averages(config: RunConfig) -> None:
    """SettingError if a run is asked for an average that its method keeps under that name."""
    level: RunConfig | TeacherConfig | None = config
    section = ""
    while level is not None:
        if level.optim.ema is not None and "ema" in described(level.method.parts).roles:
            accepted = f"none: {level.method.name} keeps an average of its own"
            raise SettingError(f"{section}optim.ema", level.optim.ema, accepted)
        level, section = level.teacher, f"{section}teacher."


def _check_unlabelled(config: RunConfig) -> None:
    """SettingError unless unlabelled images are there where they are needed, and read if there."""
    method, data = described(config.method.parts), config.data
    if data.unlabelled is None:
        if who := _who_needs_unlabelled(config.method):
            accepted = f"{UNLABELLED} (--unlabelled), since {who} needs some"
            raise SettingError("data.unlabelled", None, accepted)
        if data.unlabelled_share != DataConfig.model_fields["unlabelled_share"].default:
            accepted = "none without unlabelled images (--unlabelled)"
            raise SettingError("data.unlabelled_share", data.unlabelled_share, accepted)
        return
    if data.episodic is not None:
        accepted = "none with episodic, whose students see the support alone"
    elif makes_images(config.method) or not any(
        stretch.unlabelled for stretch in method.stretches()
    ):
        accepted = f"none: {config.method.name} reads no images without labels"
    elif method.unlabelled_views > 1 and not data.augment.active:
        who = f"{method.unlabelled_views} views of {_who_needs_unlabelled(config.method)}"
        accepted = f"crop, flip or affine, without which the {who} are equal"
        raise SettingError("data.augment", "off", accepted)
    else:
        return
    raise SettingError("data.unlabelled", repr(data.unlabelled), accepted)


def _who_needs_unlabelled(method: Component) -> str:
    """Name of the method that needs most views of unlabelled rows; empty if none needs any."""
    views = {name: one.needs.unlabelled for name, one in described(method.parts).methods.items()}
    return max(views, key=lambda name: views[name]) if any(views.values()) else ""


def procedure(method: Component) -> Procedure | None:
    """The procedure that a method is; None if it is none."""
    return procedure_of(described(method.parts).methods.values())


def makes_images(method: Component) -> bool:
    """True for a procedure whose students learn from images that it makes."""
    one = procedure(method)
    return one is not None and one.makes_images


def needs_teacher(method: Component) -> bool:
    """True if some phase asks the teacher, or a procedure does."""
    one = procedure(method)
    besides = one is not None and one.asks
    return besides or any(stretch.asks for stretch in described(method.parts).stretches())


def uses_teacher(config: RunConfig) -> bool:
    """True if the method reads the teacher, or the sampler that chooses the examples does."""
    name, _ = config.data.sampler.parts[0]
    ranked = config.data.split_file is None and bool(samplers.get(name).reads)
    return ranked or needs_teacher(config.method)


def students_needed(method: Component) -> int:
    """How many students the method trains together."""
    return described(method.parts).n_students


def _check_students(config: Raw, method: Component) -> None:
    peers, needed = config.get("peers") or (), students_needed(method)
    if not isinstance(peers, list | tuple):
        raise SettingError("peers", repr(peers), "a list of networks' names")
    if peers and len(peers) != needed - 1:
        accepted = f"{needed - 1} names ({method.name} trains {needed} student networks)"
        raise SettingError("peers", list(peers), accepted)
