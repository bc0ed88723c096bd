"""What a person sees while a sweep goes on: a live table on a terminal, sparse lines elsewhere."""

import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fskd.engines.base import TEACHER
from fskd.engines.ledger import Ledger


class Board:
    """Shows nothing; the base of the others."""

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

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Prints at once."""
        print(line, file=sys.stderr, flush=True)

    def look(self, ledger: Ledger, slots: int) -> None:
        """Prints if the last line is old enough."""
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.say(progress(ledger, slots))


class LiveBoard(Board):
    """A table by arm on a terminal."""

    def __init__(self) -> None:
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
        self._live.update(Group(Text(progress(ledger, slots), "bold"), standing(ledger)))


def make_board(quiet: bool) -> Board:
    """The board that fits where stderr goes."""
    if quiet:
        return Board()
    return LiveBoard() if sys.stderr.isatty() else LineBoard()


def progress(ledger: Ledger, slots: int) -> str:
    """One line: counts of runs, teachers included, time left and the best student so far."""
    left = ledger.seconds_left(slots)
    parts = [
        f"{len(ledger.results)} of {len(ledger.tasks)} done",
        f"{len(ledger.running)} running",
        f"{len(ledger.failed)} failed",
    ]
    if left is not None:
        parts.append(f"{clock(left)} left")
    arms = {key: ledger.tasks[key].arm for key in ledger.results}
    found = [(ledger.results[k].top1, arm) for k, arm in arms.items() if arm != TEACHER]
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


def standing(ledger: Ledger) -> Table:
    """Counts and the best top-1 so far, by arm."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("arm", overflow="fold")
    for column in ("done", "running", "failed", "waiting", "best top-1 %"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for arm in dict.fromkeys(task.arm for task in ledger.tasks.values()):
        keys = {key for key, task in ledger.tasks.items() if task.arm == arm}
        done = [ledger.results[key].top1 for key in keys & ledger.results.keys()]
        parts = (ledger.running, ledger.failed, ledger.waiting)
        counts = [str(len(keys & part.keys())) for part in parts]
        best = f"{100 * max(done):.2f}" if done else "-"
        drawn.add_row(Text(arm), str(len(done)), *counts, best)
    return drawn
