"""Drives a sweep: takes all of its tasks to an end, or stops well on Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fskd.engines.base import Engine, Outcome, Task
from fskd.engines.ledger import Ledger

Say = Callable[[str], None]


def carry_through(
    ledger: Ledger,
    engine: Engine,
    look: Callable[[Ledger, int], None],
    say: Say,
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
    told = False
    with _interrupts() as interrupted:
        while ledger.waiting or ledger.running:
            full = max_failures is not None and ledger.failures >= max_failures
            if (full or interrupted()) and not ledger.running:
                break
            if interrupted() and not told:
                say(f"finishing what is running ({len(ledger.running)}); Ctrl-C again abandons it")
                told = True
            if not (full or interrupted()):
                _start(ledger, engine)
            look(ledger, engine.slots)
            for task, outcome in engine.wait(0.5):
                _book(ledger, task, outcome, say)
        look(ledger, engine.slots)
        return not interrupted()


def _start(ledger: Ledger, engine: Engine) -> None:
    while len(ledger.running) < engine.slots and (task := ledger.take()):
        engine.start(task)


def _book(ledger: Ledger, task: Task, outcome: Outcome, say: Say) -> None:
    ledger.settle(task, outcome)
    if task.key in ledger.failed:
        say(f"failed: {task.folder} ({task.arm}): {ledger.failed[task.key]}")
    elif outcome.kind == "lost":
        say(f"{task.folder}: {outcome.error}; it is started again")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether there was a Ctrl-C; the first is only noted, so that no outcome is lost by it."""
    seen = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
