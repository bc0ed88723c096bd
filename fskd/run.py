"""``python -m fskd.run``: options -> settings -> finished runs and a table."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fskd.command import Override, examples, make_console, run_command, whole, with_options
from fskd.listing import ALL, PARTS, print_parts
from fskd.options import OPTIONS, RUN, TRAIN, settings_layer

if TYPE_CHECKING:
    from fskd.config import RunConfig

EXAMPLES = (
    ("KD+ on a quarter of the embedded digits", "--fraction 0.25 --method kdplus"),
    ("Against plain KD and no teacher", "--method ce,kd,kdplus --fraction 0.05 --seeds 5"),
    ("20 images per class of Fashion-MNIST", "--dataset fashion_mnist --shots 20 --seeds 3"),
    (
        "CIFAR-100 with a published teacher",
        "--dataset cifar100 --data-root ~/data --fraction 0.25"
        " --teacher resnet32x4 --teacher-checkpoint resnet32x4.pth --student resnet8x4",
    ),
    ("Any setting", "--set method.temperature=2 optim.lr=0.1 runtime.compile=true"),
    ("A settings or protocol file", "protocols/chain_ta.yaml --seeds 3"),
    ("What there is", "--list"),
    ("All methods, with papers and costs", "--list methods"),
)
PROGRAM = "python -m fskd.run"

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def _list(kind: str | None) -> None:
    if kind is not None:
        print_parts(make_console(), kind)
        raise typer.Exit


@app.command(epilog=examples(PROGRAM, EXAMPLES))
@with_options(*OPTIONS)
def command(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of settings or a protocol.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="INT", help="Number of seeds.", rich_help_panel=TRAIN)
    ] = "1",
    force: Annotated[
        bool, typer.Option("--force", help="Repeat finished runs.", rich_help_panel=RUN)
    ] = False,
    list_parts: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="[KIND]",
            is_eager=True,
            callback=_list,
            help=f"List all parts, or those of a kind ({', '.join(PARTS)}), and exit.",
        ),
    ] = None,
    override: Override = None,
    **settings: Any,
) -> None:
    """Distil a teacher into a student on part of a data set, and say how good it got."""
    numbers, seed = None, settings.pop("seed")
    if seed is not None or seeds != "1":
        first = whole("--seed", seed or "0", 0)
        numbers = range(first, first + whole("--seeds", seeds, 1))
    _execute(file, settings, override or [], numbers, force)


def _execute(
    file: Path | None,
    options: dict[str, Any],
    overrides: Sequence[str],
    seeds: range | None,
    force: bool,
) -> None:
    # Imported late, so that --help answers at once and mistakes in settings soon.
    from fskd.config import Runtime
    from fskd.protocol import Protocol, Run, read_protocol
    from fskd.resolve import validate

    methods = options.pop("method")
    layer = settings_layer(options, overrides)
    runtime = validate(Runtime, layer.pop("runtime", {}), "runtime")
    protocol = Protocol(name="run") if file is None else read_protocol(file)
    names = methods.split(",") if methods else [None]
    points = list(_points(layer, names, seeds))
    found = [item for point in points for item in protocol.runs(point)]
    runs: list[Run] = list({item.config.model_dump_json(): item for item in found}.values())
    configs = [item.config for item in runs]

    from fskd.results.names import save_names
    from fskd.results.tables import show_results
    from fskd.runs.finished import recall
    from fskd.runs.screen import make_screen
    from fskd.runs.session import Session

    check_all(configs, Path(runtime.out).expanduser(), force)
    session = Session(runtime, make_screen(runtime.quiet))
    results, labels = [], {}
    for arm, config in runs:
        result = None if force else recall(config, session)
        if result is None:
            from fskd.runs.runner import run  # not before there is something to do

            result = run(config, session, force=force)
        results.append(result)
        labels[results[-1].key] = arm
        if session.main and protocol.arms:
            save_names(session.out, protocol.name, labels)
    if session.main:
        show_results(results, make_console(), labels if protocol.arms else {})


def _points(
    layer: dict[str, Any], names: Sequence[str | None], seeds: range | None
) -> Iterator[dict[str, Any]]:
    """The layer for every method and seed asked for."""
    from fskd.raw import merge

    parts = {part for name in names if name for part in name.split("+")}
    for name in names:
        point = layer
        if name is not None:
            own = layer.get("method", {})
            # Settings of one of the compared methods do not concern the others.
            foreign = parts - set(name.split("+"))
            kept = {k: v for k, v in own.items() if k not in foreign}
            point = {**layer, "method": {**kept, "name": name}}
        for number in [None] if seeds is None else seeds:
            yield point if number is None else merge(point, {"seed": number})


def check_all(configs: "Sequence[RunConfig]", out: Path, force: bool = False) -> None:
    """Every mistake shows before any work starts; finished runs had none unless they are forced."""
    from fskd.runs.finished import finished
    from fskd.runs.images import load_data
    from fskd.runs.prepare import prepare
    from fskd.runs.ranking import choose_subset

    left = [config for config in configs if force or finished(config, out) is None]
    for config in _one_of_each(left):
        job = prepare(config, out)
        if job.queries is not None:
            from fskd.runs.estimate import check_queries  # it takes the training loop

            check_queries(job)
    for config in left:
        choose_subset(config, load_data(config))


def _one_of_each(configs: "Sequence[RunConfig]") -> "Iterable[RunConfig]":
    """One configuration of all those that differ in their seeds only."""

    def same_but_seeds(config: "RunConfig") -> str:
        data = config.data.model_copy(update={"split_seed": 0})
        return config.model_copy(update={"seed": 0, "data": data}).key()

    return {same_but_seeds(config): config for config in configs}.values()


def with_kind(arguments: Sequence[str]) -> list[str]:
    """Says that all parts are meant where no kind follows ``--list``.

    Example:
        >>> with_kind(["--list", "--debug"]), with_kind(["--list", "methods"])
        (['--list=all', '--debug'], ['--list', 'methods'])
    """
    given = list(arguments)
    for i, argument in enumerate(given):
        alone = i + 1 == len(given) or given[i + 1].startswith("-")
        if argument == "--list" and alone:
            given[i] = f"--list={ALL}"
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 for bad input, 1 for failed training)."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(app, PROGRAM, with_kind(given))


if __name__ == "__main__":
    sys.exit(main())
