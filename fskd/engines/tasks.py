"""From the runs of a protocol to tasks: keys, the teachers that they need, and a choice of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fskd.config import RunConfig
from fskd.engines.base import TEACHER, Task
from fskd.errors import FskdError, SettingError
from fskd.protocol import Run
from fskd.protocol.schema import SHORT
from fskd.resolve import parse_yaml
from fskd.train.prepare import pin


def make_tasks(runs: Iterable[Run]) -> dict[str, Task]:
    """One task a run, by key; the data are read, since keys stand for them."""
    tasks: dict[str, Task] = {}
    for arm, config in runs:
        pinned = pin(config)
        task = Task(arm, pinned, pinned.key(), _needs(pinned))
        tasks.setdefault(task.key, task)
    return tasks


def teachers(task: Task) -> list[Task]:
    """The runs that make a task's teacher, the first of a chain first."""
    if task.needs is None:
        return []
    config = pin(task.config.teacher_run())
    own = Task(TEACHER, config, config.key(), _needs(config))
    return [*teachers(own), own]


def _needs(config: RunConfig) -> str | None:
    if config.teacher is None or config.teacher.checkpoint is not None:
        return None
    return pin(config.teacher_run()).key()


def known_tasks(runs: Iterable[Run]) -> dict[str, Task]:
    """The tasks of all runs whose data are here."""
    tasks: dict[str, Task] = {}
    for run in runs:
        with suppress(FskdError):
            tasks |= make_tasks([run])
    return tasks


def select(runs: Sequence[Run], filters: Iterable[str]) -> list[Run]:
    """The runs that pass all filters.

    Args:
        runs: The runs of a protocol.
        filters: ``name=value`` or ``name=value,value``; the name is ``arm`` or a setting's, dotted
            or one of the short names of axes.

    Raises:
        SettingError: If a filter has another form or leaves nothing.
    """
    chosen = list(runs)
    for text in filters:
        name, equals, given = text.partition("=")
        if not equals or not name or not given:
            raise SettingError("--only", f"'{text}'", "name=value, such as arm=kdplus")
        values = [_value(run, name) for run in chosen]
        wanted = [_canonical(part) for part in given.split(",")]
        known = list(dict.fromkeys(map(str, values)))
        chosen = [run for run, v in zip(chosen, values, strict=True) if _canonical(v) in wanted]
        if not chosen:
            raise SettingError(f"--only {name}", f"'{given}'", f"one of {', '.join(known)}")
    return chosen


def _value(run: Run, name: str) -> Any:
    if name == "arm":
        return run.arm
    found: Any = run.config.model_dump(mode="json")
    for part in SHORT.get(name, name).split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found["name"] if isinstance(found, Mapping) and "name" in found else found


def _canonical(value: Any) -> str:
    """Equal for values that a settings file would read as equal."""
    if isinstance(value, str):
        value = parse_yaml(value, "--only")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value, default=str)
