"""``python -m fskd.report DIR``: finished runs -> figures, tables and one HTML page."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fskd.command import examples, run_command
from fskd.results.names import BASELINES

if TYPE_CHECKING:
    from fskd.protocol import Run
    from fskd.results.evidence import Evidence

EXAMPLES = (
    ("All runs of a folder", "runs"),
    ("Against another arm, by another measure", "runs --baseline ce --measure nll"),
    ("Only the runs of a protocol; names those that are missing", "runs --protocol FILE.yaml"),
    ("Some arms on one data set", "runs --only arm=kd,kdplus --only dataset=digits"),
    (
        "Results of another tool beside ours",
        "import other.csv runs --map acc=top1 --map num=n_train --fill dataset=cifar100",
    ),
)
PROGRAM = "python -m fskd.report"
STOPPED = "stopped; nothing of the report is written yet, or the same command writes it anew"

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
importer = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog=examples(PROGRAM, EXAMPLES))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of all runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes.", show_default="DIR/report")
    ] = None,
    protocol: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only the runs of this protocol.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Arm that others are compared with.", show_default=", else ".join(BASELINES)
        ),
    ] = None,
    measure: Annotated[
        str, typer.Option(help="Column of results: top1, top5, nll, ece, agreement, ...")
    ] = "top1",
    title: Annotated[
        str | None, typer.Option(help="Heading.", show_default="from the data sets")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE[,VALUE]", help="Rows that count.")
    ] = None,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="CSV", help="Further results, in columns named as ours."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Full tracebacks.")] = False,
) -> None:
    """Figures, tables and one HTML page from finished runs; `import` reads other tools' results."""
    from fskd.results.evidence import parse_only  # late, so that --help answers at once

    folder = folder.expanduser()
    expected = None if protocol is None else _runs_of(protocol)
    place = folder / "report" if out is None else out.expanduser()
    evidence, page = write(
        folder, place, expected, imports or (), parse_only(only or ()), baseline, measure, title
    )
    print(f"{_count(evidence)}\n{page}")


def write(
    folder: Path,
    place: Path,
    runs: "Iterable[Run] | None" = None,
    imports: Sequence[Path] = (),
    only: Mapping[str, Sequence[str]] | None = None,
    baseline: str | None = None,
    measure: str = "top1",
    title: str | None = None,
) -> "tuple[Evidence, Path]":
    """Reads a folder of runs and writes its report.

    Args:
        folder: The folder.
        place: Where the report goes.
        runs: Only these runs of a protocol count, and those that are missing are named.
        imports: Further results, CSV files in our columns.
        only: Column -> values of the rows that count.
        baseline: Arm that others are compared with.
        measure: Column of results.
        title: Heading.

    Returns:
        What there was, and the page.

    Raises:
        FskdError: If there is nothing to report, or an option does not fit.
    """
    from fskd.results.evidence import Expected, check_rows, gather
    from fskd.results.view import make_view
    from fskd.results.writing import write_report

    expected = None
    if runs is not None:
        expected = [Expected(arm, c.label(), c.model_dump(mode="json")) for arm, c in runs]
    evidence = gather(folder, expected, imports, only)
    check_rows(evidence, folder)
    view = make_view(evidence.table, baseline, measure)
    return evidence, write_report(view, evidence, place, title)


def _runs_of(file: Path) -> "Iterable[Run]":
    """The runs that a protocol stands for; needs torch, as nothing else here does."""
    from fskd.protocol import read_protocol

    return read_protocol(file).runs()


def _count(evidence: "Evidence") -> str:
    students = int((evidence.table["role"] == "student").sum())
    counts = {
        "failed": evidence.failed, "not finished": evidence.unfinished,
        "missing": evidence.missing, "unreadable": evidence.unreadable,
    }  # fmt: skip
    rest = [f"{len(runs)} {what}" for what, runs in counts.items() if runs]
    return ", ".join([f"{students} {'run' if students == 1 else 'runs'}", *rest])


@importer.command("import")
def import_results(
    file: Annotated[Path, typer.Argument(metavar="CSV", help="Results with a header.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of all runs.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="COLUMN=NAME", help="Their column and ours."),
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A column of ours that is the same in all rows."),
    ] = None,
) -> None:
    """Check another tool's results and put them into DIR/imported, where reports find them."""
    from fskd.results.evidence import IMPORTED
    from fskd.results.export import to_csv
    from fskd.results.external import parse_mapping, read_csv_results
    from fskd.results.store import check_writable, write_text

    filled = {name: value for value, name in parse_mapping(_turned(fill or ())).items()}
    table = read_csv_results(file, parse_mapping(mapping or ()), filled)
    place = folder.expanduser() / IMPORTED
    check_writable(place, "import")
    known = table.drop(columns=["role", "source", "path"]).dropna(axis="columns", how="all")
    known = known.loc[:, [name for name in known if not known[name].eq("").all()]]
    write_text(place / f"{file.stem}.csv", to_csv(known))
    rows = "1 row" if len(table) == 1 else f"{len(table)} rows"
    print(f"{rows}\n{place / f'{file.stem}.csv'}")


def _turned(pairs: Sequence[str]) -> list[str]:
    """``name=value`` as ``value=name``; a value may hold further equals signs."""
    return ["=".join(reversed(pair.split("=", 1))) for pair in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 for bad input)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["import"]:
        return run_command(importer, f"{PROGRAM} import", given[1:], STOPPED)
    return run_command(app, PROGRAM, given, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
