"""What a person sees while a sweep goes on: a live table on a terminal, sparse lines elsewhere."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fskd.engines.base import TEACHER, Task
from fskd.engines.ledger import Ledger


class Board:
    """Shows nothing; the base of the others.

    Args:
        tasks: All tasks of the sweep by key, finished ones included.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the screen as it is."""

    def say(self, line: str) -> None:
        """One line of information."""

    def look(self, ledger: Ledger, slots: int) -> None:
        """Where things stand."""


class LineBoard(Board):
    """A line every few seconds on stderr, for logs and pipes."""

    every = 10.0

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__(tasks)
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Prints at once."""
        print(line, file=sys.stderr, flush=True)

    def look(self, ledger: Ledger, slots: int) -> None:
        """Prints if the last line is old enough."""
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.say(progress(self.tasks, ledger, slots))


class LiveBoard(Board):
    """A table by arm on a terminal."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__(tasks)
        self._live = Live(console=Console(stderr=True), refresh_per_second=2)

    def __enter__(self) -> "Board":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Prints above the table."""
        self._live.console.print(Text(line))

    def look(self, ledger: Ledger, slots: int) -> None:
        """Draws the table anew."""
        title = Text(progress(self.tasks, ledger, slots), "bold")
        self._live.update(Group(title, table(self.tasks, ledger)))


def make_board(tasks: Mapping[str, Task], quiet: bool) -> Board:
    """The board that fits where stderr goes."""
    if quiet:
        return Board(tasks)
    return LiveBoard(tasks) if sys.stderr.isatty() else LineBoard(tasks)


def progress(tasks: Mapping[str, Task], ledger: Ledger, slots: int) -> str:
    """One line: counts of runs, teachers included, time left and the best student."""
    left = ledger.seconds_left(slots)
    parts = [
        f"{len(ledger.results)} of {len(tasks)} done",
        f"{len(ledger.running)} running",
        f"{len(ledger.failed)} failed",
    ]
    if left is not None:
        parts.append(f"{clock(left)} left")
    found = [(r.top1, tasks[k].arm) for k, r in ledger.results.items() if tasks[k].arm != TEACHER]
    if found:
        top1, arm = max(found)
        parts.append(f"best {100 * top1:.2f} % ({arm})")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> clock(59.6), clock(61), clock(7322)
        ('1:00', '1:01', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(tasks: Mapping[str, Task], ledger: Ledger) -> Table:
    """Counts and the best top-1 so far, by arm."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("arm", overflow="fold")
    for column in ("done", "running", "failed", "waiting", "best top-1 %"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for arm in dict.fromkeys(task.arm for task in tasks.values()):
        keys = {key for key, task in tasks.items() if task.arm == arm}
        done = [ledger.results[key].top1 for key in keys & ledger.results.keys()]
        counts = [
            len(keys & part.keys()) for part in (ledger.running, ledger.failed, ledger.waiting)
        ]
        best = f"{100 * max(done):.2f}" if done else "-"
        drawn.add_row(Text(arm), str(len(done)), *map(str, counts), best)
    return drawn
