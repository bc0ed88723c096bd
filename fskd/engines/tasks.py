"""From the runs of a protocol to tasks: keys, the teachers that they need, and a choice of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fskd.config import RunConfig
from fskd.engines.base import TEACHER, Task
from fskd.engines.ledger import Ledger
from fskd.engines.mirror import Mirror
from fskd.errors import FskdError, SettingError
from fskd.protocol import Run
from fskd.protocol.schema import SHORT
from fskd.raw import parse_yaml
from fskd.resolve import needs_teacher
from fskd.results.store import RunDir
from fskd.runs.prepare import identify
from fskd.runs.ranking import ranking_run
from fskd.runs.teacher import teacher_runs


def make_tasks(runs: Iterable[Run]) -> dict[str, Task]:
    """One task a run, by key; the data are read, since keys stand for them."""
    tasks: dict[str, Task] = {}
    for arm, config in runs:
        task = _task(arm, config)
        tasks.setdefault(task.key, task)
    return tasks


def known_tasks(runs: Iterable[Run]) -> dict[str, Task]:
    """The tasks of all runs whose data are here."""
    tasks: dict[str, Task] = {}
    for run in runs:
        with suppress(FskdError):
            tasks |= make_tasks([run])
    return tasks


def _task(arm: str, config: RunConfig) -> Task:
    named, _ = identify(config)
    own = tuple(_task(TEACHER, run).folder for run in _teacher_runs(named))
    return Task(arm, named, named.key(), own)


def _teacher_runs(config: RunConfig) -> tuple[RunConfig, ...]:
    """The runs that have to be finished before this one, where they make its teacher."""
    if config.teacher is None:
        return ()
    return teacher_runs(config if needs_teacher(config.method) else ranking_run(config))


def _teachers(task: Task) -> list[Task]:
    """The runs that make a task's teacher, the first of a chain first."""
    found: list[Task] = []
    for run in _teacher_runs(task.config):
        own = _task(TEACHER, run)
        found += [*_teachers(own), own]
    return found


def open_ledger(
    tasks: Mapping[str, Task],
    out: Path,
    retry_failed: bool = False,
    tries: int = 3,
    mirror: Mirror | None = None,
) -> Ledger:
    """What is finished, what failed before, and what is left, teachers first.

    Args:
        tasks: The runs that are wanted, by key.
        out: Folder of all runs.
        retry_failed: Whether runs that failed before are left, too.
        tries: How often a run is started whose process dies.
        mirror: Where finished runs are fetched from, if any.
    """
    ledger = Ledger(out, tries=tries)

    def sort(task: Task) -> None:
        folder = RunDir(out / task.folder)
        if mirror is not None:
            mirror.fetch(folder.path)
        if (result := folder.load()) is not None:
            folder.clean()
            ledger.results[task.key] = result
        elif (failure := folder.failure()) is not None and not retry_failed:
            ledger.failed[task.key] = f"{failure['error']} (--retry-failed tries again)"
        else:
            ledger.waiting[task.key] = task

    for task in tasks.values():
        sort(task)
    students, ledger.waiting = ledger.waiting, {}
    taught = {task.needs: task for task in students.values() if task.needs}
    first = {teacher.key: teacher for task in taught.values() for teacher in _teachers(task)}
    for teacher in first.values():
        sort(teacher)
    ledger.waiting |= students
    ledger.tasks |= {**first, **tasks}
    return ledger


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
        known = [str(value) for value in dict.fromkeys(values) if value is not None]
        for part, value in zip(given.split(","), wanted, strict=True):
            if value not in map(_canonical, values):
                accepted = f"one of {', '.join(known)}" if known else "a setting of these runs"
                raise SettingError(f"--only {name}", f"'{part}'", accepted)
        chosen = [run for run, v in zip(chosen, values, strict=True) if _canonical(v) in wanted]
    return chosen


def _value(run: Run, name: str) -> Any:
    """What a run has under a name, None if there is no such setting; sections by their names."""
    if name == "arm":
        return run.arm
    found: Any = run.config.model_dump(mode="json")
    for part in SHORT.get(name, name).split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    if isinstance(found, Mapping):
        found = found.get("name", json.dumps(found))
    return found if isinstance(found, str | int | float | None) else json.dumps(found)


def _canonical(value: Any) -> str:
    """Equal for values that a settings file would read as equal."""
    if isinstance(value, str):
        value = parse_yaml(value, "--only")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if number else value, default=str)
