"""``python -m fskd.protocol check FILE...``: what protocols stand for and what they will cost."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fskd.command import run_command, with_options
from fskd.errors import FskdError
from fskd.options import settings_layer

if TYPE_CHECKING:
    from fskd.protocol.plan import Plan
    from fskd.protocol.schema import Protocol, Run
    from fskd.runs.calibrate import Planner

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.callback()
def _commands() -> None:
    """Protocols: one YAML file that stands for many runs."""


@app.command()
@with_options("data_root", "out", "device")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Protocol files.")],
    calibrate: Annotated[bool, typer.Option(help="Time a few steps of every kind of run.")] = True,
    **settings: Any,
) -> None:
    """Validate protocols and show runs, counts and time; nothing is trained or written."""
    # Imported late, so that --help answers at once.
    from fskd.config import Runtime
    from fskd.protocol.schema import read_protocol
    from fskd.resolve import validate
    from fskd.runs.calibrate import Planner
    from fskd.train.devices import launch

    layer = settings_layer(settings)
    runtime = validate(Runtime, layer.pop("runtime", {}), "runtime")
    planner = Planner(launch(runtime) if calibrate else None)
    broken = 0
    for file in files:
        try:
            _check(read_protocol(file), layer, planner, Path(runtime.out).expanduser())
        except FskdError as error:
            broken += 1
            message = " ".join(str(error).split())
            name = "" if file.name in message else f"{file}: "
            print(f"error: {name}{message}", file=sys.stderr)
    if broken:
        raise typer.Exit(2)


def _check(protocol: "Protocol", overrides: dict[str, Any], planner: "Planner", out: Path) -> None:
    from fskd.protocol.plan import make_plan

    runs = protocol.runs(overrides)
    plan = make_plan(runs, planner, out)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    done = "" if plan.finished is None else f", {plan.finished} finished in {out}"
    mode = f", {protocol.mode}" if protocol.mode else ""
    console.print(Text(f"{protocol.name}: {len(runs)} runs{done}{mode}", "bold"), soft_wrap=True)
    console.print(_table(plan), highlight=False)
    for line in _remarks(runs, plan, planner):
        console.print(Text(line), soft_wrap=True)
    console.print()


def _remarks(runs: "Sequence[Run]", plan: "Plan", planner: "Planner") -> Iterator[str]:
    from fskd.data.samplers.base import samplers

    if any(arm.unequal for arm in plan.arms):
        yield "* unlike most arms on the same data"
    if plan.absent:
        names = ", ".join(plan.absent)
        yield f"{names}: not on this machine (see --data-root); noise in the place of images"
    tasks = {run.config.data.episodic.episodes for run in runs if run.config.data.episodic}
    if tasks:
        number = " or ".join(map(str, sorted(tasks)))
        yield f"updates, rows and queries are those of one episode; a run has {number}"
    if any(samplers.get(run.config.data.sampler.name).reads for run in runs):
        yield "examples are ranked by the teacher's outputs; counts and time leave that out"
    if plan.seconds is not None and planner.fabric is not None:
        what = "noise" if plan.absent else "the data"
        some = "teacher" if plan.teachers == 1 else "teachers"
        teachers = f", {plan.teachers} {some} included" if plan.teachers else ""
        where = f"steps timed on {what}, {planner.fabric.device}"
        yield f"left: {span(plan.seconds)} on one process{teachers} ({where})"


def _table(plan: "Plan") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", overflow="fold")
    for column in ("runs", "updates", "student rows", "teacher queries", "time left"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm in plan.arms:
        cells = [_count(name, arm.counts[name], arm.unequal) for name in arm.counts]
        left = "-" if arm.seconds is None else span(arm.seconds)
        table.add_row(arm.arm, str(arm.runs), *cells, left)
    return table


def _count(name: str, values: tuple[int, int], unequal: frozenset[str]) -> str:
    low, high = values
    text = f"{low:,}" if low == high else f"{low:,}-{high:,}"
    return f"{text}{'*' if name in unequal else ''}"


def span(seconds: float) -> str:
    """A duration in words, rounded to what an estimate can promise.

    Example:
        >>> span(3), span(70), span(700), span(9000), span(400_000)
        ('under 10 s', 'about 70 s', 'about 12 min', 'about 2.5 h', 'about 4.6 days')
    """
    if seconds == 0:
        return "nothing"
    if seconds < 10:
        return "under 10 s"
    if seconds < 100:
        return f"about {round(seconds, -1):.0f} s"
    unit, length = ("min", 60) if seconds < 5400 else ("h", 3600)
    if seconds >= 2 * 86400:
        unit, length = "days", 86400
    value = seconds / length
    return f"about {value:.0f} {unit}" if value >= 10 else f"about {value:.2g} {unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 for bad input)."""
    return run_command(app, "python -m fskd.protocol", arguments)


if __name__ == "__main__":
    sys.exit(main())
