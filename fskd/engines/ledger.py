"""Where every task of a sweep stands."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fskd.engines.base import Outcome, Task
from fskd.results.store import Result, RunDir

# Seconds until a run is looked at again that another process is making.
PATIENCE = 1.0


@dataclass
class Ledger:
    """The tasks of a sweep by key.

    Attributes:
        tasks: All of them, teachers first.
        out: Folder of all runs.
        waiting: Still to be started, in order.
        results: Finished runs, those of earlier sweeps included.
        failed: Errors, those of earlier sweeps included.
        tries: How often a run is started whose process dies.
        running: Started, with the time of their start.
        made: Number of runs made by this sweep.
        failures: Number of failures in this sweep.
        seconds: Time of every run made by this sweep, by arm.
    """

    out: Path
    tasks: dict[str, Task] = field(default_factory=dict)
    waiting: dict[str, Task] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    tries: int = 3
    running: dict[str, tuple[Task, float]] = field(default_factory=dict)
    made: int = 0
    failures: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _lost: Counter[str] = field(default_factory=Counter)
    _not_before: dict[str, float] = field(default_factory=dict)

    def take(self) -> Task | None:
        """The next task that can be started now; it counts as running."""
        now = time.monotonic()
        for key, task in list(self.waiting.items()):
            if task.needs & self.failed.keys():
                self.failed[key] = "its teacher was not made"
                del self.waiting[key]
            elif self._can_start(task, now):
                del self.waiting[key]
                self.running[key] = (task, now)
                return task
        return None

    def _can_start(self, task: Task, now: float) -> bool:
        taught = task.needs <= self.results.keys()
        return taught and self._not_before.get(task.key, 0.0) <= now

    def settle(self, task: Task, outcome: Outcome) -> None:
        """Books what became of a running task."""
        key = task.key
        _, begun = self.running.pop(key)
        if outcome.result is not None:
            self.results[key] = outcome.result
            if outcome.kind == "made":
                self.made += 1
                self.seconds.setdefault(task.arm, []).append(time.monotonic() - begun)
        elif outcome.kind == "busy":
            self._not_before[key] = time.monotonic() + PATIENCE
            self.waiting[key] = task
        elif outcome.kind == "lost" and self._lost[key] + 1 < self.tries:
            self._lost[key] += 1
            self.waiting = {key: task, **self.waiting}
        else:
            times = f" {self.tries} times" if outcome.kind == "lost" else ""
            self._fail(task, outcome.error + times)

    def _fail(self, task: Task, error: str) -> None:
        self.failures += 1
        self.failed[task.key] = error
        with suppress(OSError):  # the sweep still shows the error itself
            folder = RunDir(self.out / task.folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.record_failure(error)

    def seconds_left(self, slots: int) -> float | None:
        """Estimate from the runs made so far, by arm where there are some; None without any."""
        known = [s for own in self.seconds.values() for s in own]
        if not known:
            return None
        usual = sum(known) / len(known)
        means = {arm: sum(own) / len(own) for arm, own in self.seconds.items()}
        now = time.monotonic()
        left = sum(means.get(task.arm, usual) for task in self.waiting.values())
        for task, begun in self.running.values():
            left += max(means.get(task.arm, usual) - (now - begun), 0.0)
        return left / slots
