"""What a person sees while runs go on: a progress bar on a terminal, sparse lines elsewhere."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fskd.errors import DoubtWarning

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0  # seconds that a pass over images may take before it is shown


class Screen:
    """Shows nothing but Python's warnings; the base of the others, and what ``distill`` uses."""

    def say(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line about what is probably wrong, which is shown in any case."""
        warnings.warn(text, DoubtWarning, stacklevel=2)

    def begin(self, title: str, steps: int, done: int) -> None:
        """A training begins (or goes on) at step ``done`` of ``steps``."""

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        """Losses at some step; ``rows`` is the number of student rows a step."""

    def end(self) -> None:
        """The training has ended."""

    @contextmanager
    def passing(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Around a pass over ``total`` images, which is shown if it takes long.

        What it gives is told how many more of them have been seen.
        """
        yield lambda _: None


class _Speed:
    """Rows a second since the beginning."""

    def __init__(self, done: int) -> None:
        self.start, self.begun = done, time.monotonic()

    def __call__(self, step: int, rows: int) -> float:
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        return (step - self.start) * rows / elapsed


def _losses(record: dict[str, Any]) -> str:
    terms = {k: v for k, v in record.items() if k not in ("step", "phase", "lr")}
    return " ".join(f"{name} {value:.3f}" for name, value in terms.items())


class QuietScreen(Screen):
    """What ``--quiet`` uses."""

    def warn(self, text: str) -> None:
        """Prints at once."""
        print(f"warning: {text}", file=sys.stderr, flush=True)


class LineScreen(QuietScreen):
    """A line every few seconds on stderr, for logs and pipes."""

    def __init__(self, every: float = 10.0) -> None:
        self.every, self._title, self._last = every, "", 0.0
        self._speed = _Speed(0)

    def say(self, text: str) -> None:
        """Prints at once."""
        print(text, file=sys.stderr, flush=True)

    def begin(self, title: str, steps: int, done: int) -> None:
        """Prints the title."""
        self._title, self._last, self._speed = title, time.monotonic(), _Speed(done)
        self.say(f"{self._title}: {steps} steps")

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        """Prints if the last line is old enough."""
        if time.monotonic() - self._last < self.every:
            return
        self._last, step = time.monotonic(), record["step"]
        speed = self._speed(step, rows)
        left = (steps - step) * rows / max(speed, 1e-9)
        self.say(
            f"{self._title}: {record['phase']} {step}/{steps} {_losses(record)}"
            f" {speed:.0f} images/s, {left:.0f} s left"
        )

    @contextmanager
    def passing(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Prints after a second, and then as often as steps do."""
        speed, done, shown = _Speed(0), 0, time.monotonic() + PATIENCE - self.every

        def seen(rows: int) -> None:
            nonlocal done, shown
            done += rows
            if time.monotonic() - shown >= self.every and done < total:
                shown = time.monotonic()
                left = (total - done) / speed(done, 1)
                self.say(f"{title}: {done:,}/{total:,} images, {left:.0f} s left")

        yield seen


class BarScreen(Screen):
    """A progress bar on a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID
        self._speed = _Speed(0)

    def say(self, text: str) -> None:
        """Prints above the bar."""
        self.console.print(text, highlight=False, style="dim")

    def warn(self, text: str) -> None:
        """Prints above the bar."""
        self.console.print(f"warning: {text}", highlight=False, style="yellow", markup=False)

    def begin(self, title: str, steps: int, done: int) -> None:
        """Opens a bar."""
        self._speed = _Speed(done)
        self._bar = self._make_bar()
        self._task = self._bar.add_task(title, total=steps, completed=done, info="")
        self._bar.start()

    def step(self, record: dict[str, Any], steps: int, rows: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            speed = f"{self._speed(record['step'], rows):.0f} images/s"
            info = f"{speed} {record['phase']} {_losses(record)}"
            self._bar.update(self._task, completed=record["step"], info=info)

    def end(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @contextmanager
    def passing(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar after a second, below that of the training if there is one."""
        begun, done, bar = time.monotonic(), 0, self._bar
        task: TaskID | None = None

        def seen(rows: int) -> None:
            nonlocal bar, done, task
            done += rows
            if task is None and time.monotonic() - begun > PATIENCE:
                if bar is None:
                    bar = self._make_bar()
                    bar.start()
                task = bar.add_task(title, total=total, info="images")
            if bar is not None and task is not None:
                bar.update(task, completed=done)

        try:
            yield seen
        finally:
            if bar is not None and bar is not self._bar:
                bar.stop()
            elif bar is not None and task is not None:
                bar.remove_task(task)

    def _make_bar(self) -> "Progress":
        # Not before it is seen: the import takes as long as a hundred steps.
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        return Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[info]}", table_column=Column(no_wrap=True, ratio=1)),
            console=self.console,
            expand=True,
        )


def make_screen(quiet: bool) -> Screen:
    """The screen that fits where stderr goes."""
    if quiet:
        return QuietScreen()
    return BarScreen() if sys.stderr.isatty() else LineScreen()
