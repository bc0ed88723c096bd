"""``python -m fskd.benchmark losses``: how fast the loss paths are on this machine, as ratios.

Every round times all paths one after another, so that whatever else the machine does meets them
all; a ratio is the median over rounds of the plain composition's time divided by the path's.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fskd.command import examples, make_console, run_command, whole
from fskd.errors import SettingError

if TYPE_CHECKING:
    import torch

    from fskd.losses.fused.measuring import Row

SHAPES = "64x10,64x100,256x100,256x1000,128x21841,512x50257"
EXAMPLES = (
    ("All shapes, as in docs/losses.md", "losses --threads 1 --out losses.csv"),
    ("One shape on a GPU", "losses --shapes 256x1000 --device cuda"),
    ("Measure this machine, so that kd_loss takes its fastest paths", "losses --tune"),
)
PROGRAM = "python -m fskd.benchmark"
app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.callback()
def _benchmarks() -> None:
    """Measures parts of fskd on this machine."""


@app.command(epilog=examples(PROGRAM, EXAMPLES))
def losses(
    shapes: Annotated[str, typer.Option(help="ROWSxCLASSES, with commas.")] = SHAPES,
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32,bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[str, typer.Option(metavar="INT", help="Threads on a CPU.")] = "1",
    rounds: Annotated[str, typer.Option(metavar="INT", help="At least 5.")] = "9",
    parts: Annotated[str, typer.Option(help="kd, kdplus, linear.")] = "kd,kdplus,linear",
    out: Annotated[Path | None, typer.Option(help="CSV file to write.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Keep the result for kd_loss(impl='auto').")
    ] = False,
) -> None:
    """Time and memory of the loss paths against the plain composition (ratio above 1: faster)."""
    from fskd.losses.fused import measuring

    sizes = [_shape(text) for text in shapes.split(",")]
    n_rounds = whole("--rounds", rounds, 5)
    known = _precisions(dtypes.split(","))
    place = _place(device, whole("--threads", threads, 1))
    found: list[Row] = []
    console = make_console()
    chosen = _parts(parts.split(","))
    for dtype in known:
        for rows, classes in sizes:
            made = measuring.measure(rows, classes, dtype, place, n_rounds, chosen)
            found += made
            show(made, console)
    if out is not None:
        write(found, out)
    if tune:
        console.print(f"kept in {measuring.keep(found)}")


def _shape(text: str) -> tuple[int, int]:
    rows, times, classes = text.partition("x")
    if not (times and rows.isdecimal() and classes.isdecimal() and int(rows) and int(classes) > 1):
        raise SettingError("--shapes", f"'{text}'", "ROWSxCLASSES, such as 256x1000")
    return int(rows), int(classes)


def _place(device: str, threads: int) -> "torch.device":
    """The device, with as many threads as asked for."""
    import torch

    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        accepted = f"a device of this machine ({reason})"
        raise SettingError("--device", f"'{device}'", accepted) from None
    torch.set_num_threads(threads)
    return found


def _precisions(names: Sequence[str]) -> "list[torch.dtype]":
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name in names:
        if name not in known:
            raise SettingError("--dtypes", f"'{name}'", ", ".join(known))
    return [known[name] for name in names]


def _parts(names: Sequence[str]) -> Sequence[str]:
    from fskd.losses.fused.measuring import MEASURES

    for name in names:
        if name not in MEASURES:
            raise SettingError("--parts", f"'{name}'", ", ".join(MEASURES))
    return names


def show(rows: "Sequence[Row]", console: Console) -> None:
    """One table for a shape and precision."""
    from rich.table import Table

    if not rows:
        return
    first = rows[0]
    table = Table(title=f"{first.rows} x {first.classes}, {first.dtype}, {first.device}", box=None)
    for name in ("part", "path", "time, us", "ratio", "extra memory, xRC", "of copy bound"):
        table.add_column(name, justify="left" if name in ("part", "path") else "right")
    for row in rows:
        extra = "-" if row.extra != row.extra else f"{row.extra:.2f}"
        bound = f"{100 * row.copy_bound:.0f} %" if row.copy_bound == row.copy_bound else "-"
        table.add_row(
            row.part, row.path, f"{row.microseconds:,.0f}", f"{row.ratio:.2f}", extra, bound
        )
    console.print(table)


def write(rows: "Sequence[Row]", path: Path) -> None:
    """All rows as CSV, with the versions in the first line as a comment."""
    import torch

    from fskd._version import __version__
    from fskd.losses.fused.measuring import Row
    from fskd.results.store import write_text

    head = f"# torch {torch.__version__}, fskd {__version__}, {torch.get_num_threads()} thread(s)"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(f"{x:.4g}" if isinstance(x, float) else x for x in row)
    write_text(path, f"{head}\n{text.getvalue()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run_command(app, PROGRAM, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
