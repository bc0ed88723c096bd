"""Where every task of a sweep stands, and the loop that takes them all to an end."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fskd.engines.base import Engine, Outcome, Task
from fskd.results.store import Result

# Seconds until a run is looked at again that another process is making.
PATIENCE = 1.0


@dataclass
class Ledger:
    """The tasks of a sweep by key.

    Attributes:
        waiting: Still to be started, in order.
        results: Finished runs, those of earlier sweeps included.
        failed: Errors, those of earlier sweeps included.
        tries: How often a run is started whose process dies.
        running: Started, with the time of their start.
        made: Number of runs made by this sweep.
        failures: Number of failures in this sweep.
        seconds: Time of every run made by this sweep, by arm.
    """

    waiting: dict[str, Task]
    results: dict[str, Result]
    failed: dict[str, str]
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
            if task.needs in self.failed:
                self.failed[key] = "its teacher was not made"
                del self.waiting[key]
            elif self._can_start(task, now):
                del self.waiting[key]
                self.running[key] = (task, now)
                return task
        return None

    def _can_start(self, task: Task, now: float) -> bool:
        taught = task.needs is None or task.needs in self.results
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
            self.failures += 1
            times = f" {self.tries} times" if outcome.kind == "lost" else ""
            self.failed[key] = outcome.error + times

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


def carry_through(
    ledger: Ledger,
    engine: Engine,
    look: Callable[[Ledger, int], None],
    say: Callable[[str], None],
    max_failures: int | None = None,
) -> bool:
    """Takes every task to an end, or stops early.

    On Ctrl-C no run is started any more and those that go on are finished; at the second one the
    KeyboardInterrupt goes on to the caller.

    Args:
        ledger: The tasks.
        engine: Where they are carried out.
        look: Called with the ledger and the slots now and then.
        say: Shows a line.
        max_failures: Failures after which no run is started any more.

    Returns:
        False if Ctrl-C stopped it.
    """
    interrupted = False
    while ledger.waiting or ledger.running:
        full = max_failures is not None and ledger.failures >= max_failures
        if (interrupted or full) and not ledger.running:
            break
        try:
            if not (interrupted or full):
                _start(ledger, engine)
            _book(ledger, engine.wait(0.5), say)
            look(ledger, engine.slots)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            say(f"finishing {len(ledger.running)} runs; Ctrl-C again abandons them")
    return not interrupted


def _start(ledger: Ledger, engine: Engine) -> None:
    while len(ledger.running) < engine.slots and (task := ledger.take()):
        engine.start(task)


def _book(
    ledger: Ledger, ended: Iterable[tuple[Task, Outcome]], say: Callable[[str], None]
) -> None:
    for task, outcome in ended:
        ledger.settle(task, outcome)
        if task.key in ledger.failed:
            say(f"failed: {task.arm}, {task.folder}: {ledger.failed[task.key]}")
        elif outcome.kind == "lost":
            say(f"{task.folder}: {outcome.error}; it is started again")
