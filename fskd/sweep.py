"""``python -m fskd.sweep FILE``: all runs of a protocol, side by side, whatever dies meanwhile."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fskd.command import Override, examples, make_console, run_command, whole, with_options
from fskd.engines.base import Engine, Task
from fskd.engines.local import local_pool, preload
from fskd.errors import SettingError
from fskd.options import RUN, settings_layer
from fskd.run import check_all

if TYPE_CHECKING:
    from fskd.config import Runtime
    from fskd.engines.ledger import Ledger
    from fskd.protocol import Run

EXAMPLES = (
    ("All runs of a protocol on all cores or GPUs", "protocols/digits_fractions.yaml"),
    ("What would be run", "protocols/digits_fractions.yaml --dry-run"),
    ("A part of it", "protocols/digits_fractions.yaml --only arm=kd,kdplus --only fraction=0.05"),
    ("Four runs on every GPU", "protocols/cifar10_kshot.yaml --data-root DIR --gpus-per-run 0.25"),
    ("On a Ray cluster", "FILE --engine ray --address auto --out /shared/runs"),
    ("Once more what failed", "FILE --retry-failed"),
)
PROGRAM = "python -m fskd.sweep"
STOPPED = "stopped; finished runs are kept, and the same command goes on with those that are left"
ENGINE = "Where"

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Hands(NamedTuple):
    """Who carries out the runs.

    Attributes:
        engine: ``local`` or ``ray``.
        address: Of a Ray cluster.
        workers: Most runs at once, or None.
        gpus_per_run: Share of a GPU.
        mirror: Where finished runs are copied, or None.
    """

    engine: str
    address: str | None
    workers: int | None
    gpus_per_run: float
    mirror: str | None


@app.command(epilog=examples(PROGRAM, EXAMPLES))
@with_options("data_root", "out", "device", "quiet")
def command(
    file: Annotated[Path, typer.Argument(help="Protocol file.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...", help="Only runs with this arm or setting; may be repeated."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="INT", help="Number of seeds instead of the file's.")
    ] = None,
    override: Override = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where finished runs are kept, too: s3://bucket/runs, ...",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be run.", rich_help_panel=RUN)
    ] = False,
    max_failures: Annotated[
        str | None,
        typer.Option(
            metavar="INT", help="Start nothing after so many failures.", rich_help_panel=RUN
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Once more what failed before.", rich_help_panel=RUN),
    ] = False,
    tries: Annotated[
        str,
        typer.Option(
            metavar="INT", help="Starts of a run whose process dies, at most.", rich_help_panel=RUN
        ),
    ] = "3",
    no_report: Annotated[
        bool, typer.Option("--no-report", help="No page at the end.", rich_help_panel=RUN)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Full tracebacks.", rich_help_panel=RUN)
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local (processes) or ray.", rich_help_panel=ENGINE)
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster.", rich_help_panel=ENGINE)
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="INT",
            help="Runs at once.",
            show_default="one a core, or as the GPUs allow",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    gpus_per_run: Annotated[
        float, typer.Option(help="Share of a GPU, in (0, 1].", rich_help_panel=ENGINE)
    ] = 1.0,
    **settings: Any,
) -> None:
    """Carry out all runs of a protocol; finished ones are skipped, teachers come first."""
    if engine not in ("local", "ray"):
        raise SettingError("--engine", f"'{engine}'", "local or ray")
    if address is not None and engine != "ray":
        raise SettingError("--address", address, "none without --engine ray")
    if not 0 < gpus_per_run <= 1:
        raise SettingError("--gpus-per-run", gpus_per_run, "a number in (0, 1]")
    most = None if workers is None else whole("--workers", workers, 1)
    limit = None if max_failures is None else whole("--max-failures", max_failures, 1)
    starts = whole("--tries", tries, 1)
    count = None if seeds is None else range(whole("--seeds", seeds, 1))
    if engine == "local" and not dry_run:
        preload()
    # Imported late, so that --help answers at once.
    from fskd.engines.mirror import Mirror
    from fskd.engines.tasks import open_ledger

    store = None if mirror is None else Mirror(mirror)
    sweep = _read(file, settings, override or [], count, only or [])
    ledger = open_ledger(sweep.tasks, sweep.out, retry_failed, starts, store)
    if dry_run:
        _show(sweep, ledger)
        return
    _keep_names(sweep)
    hands = Hands(engine, address, most, gpus_per_run, mirror)
    through = not ledger.waiting or _carry_out(sweep, ledger, hands, limit)
    if store is not None:
        for task in ledger.tasks.values():  # what was made elsewhere, or before there was a mirror
            store.fetch(sweep.out / task.folder)
            store.keep(sweep.out / task.folder)
    _conclude(sweep, ledger)
    _report(sweep, ledger, wanted=through and not no_report)
    _exit(ledger, through)


class Sweep(NamedTuple):
    """What a sweep is about.

    Attributes:
        name: Of the protocol.
        named: Whether it has arms with names.
        runtime: Device, folders and the like.
        runs: The runs that were chosen.
        tasks: The same, by key.
        arms: Key -> arm of all runs of the protocol whose data are here.
    """

    name: str
    named: bool
    runtime: "Runtime"
    runs: list["Run"]
    tasks: dict[str, Task]
    arms: dict[str, str]

    @property
    def out(self) -> Path:
        """Folder of all runs."""
        return Path(self.runtime.out).expanduser()


def _read(
    file: Path,
    options: Mapping[str, Any],
    overrides: Sequence[str],
    seeds: range | None,
    only: Sequence[str],
) -> Sweep:
    from fskd.config import Runtime
    from fskd.engines.tasks import known_tasks, make_tasks, select
    from fskd.protocol import read_protocol
    from fskd.resolve import validate

    layer = settings_layer(options, overrides)
    runtime = validate(Runtime, layer.pop("runtime", {}), "runtime")
    if runtime.devices > 1:
        raise SettingError("runtime.devices", runtime.devices, "1: a sweep has one process a run")
    protocol = read_protocol(file)
    points = [layer] if seeds is None else [{**layer, "seed": seed} for seed in seeds]
    runs = [run for point in points for run in protocol.runs(point)]
    chosen = select(runs, only)
    check_all([run.config for run in chosen], Path(runtime.out).expanduser())
    tasks = make_tasks(chosen)
    arms = {key: task.arm for key, task in (known_tasks(runs) if only else tasks).items()}
    return Sweep(protocol.name, bool(protocol.arms), runtime, chosen, tasks, arms)


def _show(sweep: Sweep, ledger: "Ledger") -> None:
    for task in ledger.waiting.values():
        print(f"{task.arm}: {task.folder}")
    for key, error in ledger.failed.items():
        print(f"failed before: {ledger.tasks[key].folder}: {error}")
    done = len(sweep.tasks.keys() & ledger.results.keys())
    teachers = len(ledger.waiting.keys() - sweep.tasks.keys())
    left = len(ledger.waiting) - teachers
    also = f", and {teachers} teacher{'s' * (teachers > 1)} to be trained first" if teachers else ""
    print(f"{done} of {len(sweep.tasks)} runs finished, {left} left{also}")


def _keep_names(sweep: Sweep) -> None:
    """Leaves beside the results what the runs are called, so that reports name what is missing."""
    from fskd.results.names import save_names
    from fskd.results.store import check_writable

    check_writable(sweep.out)
    if sweep.named:
        save_names(sweep.out, sweep.name, sweep.arms)


def _carry_out(sweep: Sweep, ledger: "Ledger", hands: Hands, max_failures: int | None) -> bool:
    from fskd.engines.board import make_board
    from fskd.engines.drive import carry_through

    engine = _engine(sweep.runtime, hands)
    try:
        with make_board(sweep.runtime.quiet) as board:
            board.say(f"{len(ledger.waiting)} runs, {engine.slots} at once, in {sweep.out}")
            return carry_through(ledger, engine, board.look, board.say, max_failures)
    finally:
        engine.close()


def _engine(runtime: "Runtime", hands: Hands) -> Engine:
    """The engine asked for; a device or cluster that is not there is an error before any work."""
    if hands.engine == "local":
        return local_pool(runtime, hands.workers, hands.gpus_per_run, hands.mirror)
    from fskd.engines.ray import RayEngine

    return RayEngine(runtime, hands.address, hands.gpus_per_run, hands.workers, hands.mirror)


def _conclude(sweep: Sweep, ledger: "Ledger") -> None:
    """The table of what is finished."""
    from fskd.results.tables import show_results

    results = [ledger.results[key] for key in sweep.tasks if key in ledger.results]
    if results:
        arms = {key: task.arm for key, task in sweep.tasks.items()} if sweep.named else {}
        show_results(results, make_console(), arms)
    made = f"{ledger.made} made now, teachers included"
    print(f"{len(results)} of {len(sweep.tasks)} runs finished; {made}")


def _report(sweep: Sweep, ledger: "Ledger", wanted: bool) -> None:
    """Figures, tables and the page, unless they are there and nothing has come."""
    from fskd.report import write

    place = sweep.out / "report" / sweep.name
    if not wanted or not sweep.tasks.keys() & ledger.results.keys():
        return
    if ledger.made or not (place / "index.html").exists():
        write(sweep.out, place, sweep.runs)
    print(f"report: {place / 'index.html'}")


def _exit(ledger: "Ledger", through: bool) -> None:
    """Says what is not finished; sets the exit code."""
    for key, error in ledger.failed.items():
        print(f"failed: {ledger.tasks[key].folder}: {error}", file=sys.stderr)
    if not through:
        raise typer.Exit(130)
    if ledger.waiting:
        print(f"stopped with {len(ledger.waiting)} runs left", file=sys.stderr)
    if ledger.failed or ledger.waiting:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 1 if a run failed, 2 for bad input, 130 after Ctrl-C."""
    return run_command(app, PROGRAM, arguments, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
