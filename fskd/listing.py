"""What there is, as ``python -m fskd.run --list`` shows it."""

from rich.console import Console
from rich.table import Table

from fskd.errors import SettingError
from fskd.registry import describe

# What there is of each kind, and where.
PARTS = {
    "methods": "fskd.methods",
    "generators": "fskd.generators",
    "samplers": "fskd.data.samplers",
    "datasets": "fskd.data.datasets",
    "models": "fskd.models",
    "procedures": "fskd.procedures",
}
ALL = "all"
# Below this width papers are wrapped; from the other on they have room in one line.
NARROW, WIDE = 100, 140
LEGEND = (
    "needs: logits and features of the teacher; stages and widths equal to its",
    "rows: through each student per row that plain training draws in the same budget",
    "networks: trained ones, and what else runs in training",
    "queries: rows that a teacher is asked about, per row; in brackets where no image is moved at"
    " random, beyond once for each image",
)


def print_parts(console: Console, kind: str = ALL) -> None:
    """All parts in one line each, or those of a kind; of methods the table of all.

    Raises:
        SettingError: If there is no such kind.
    """
    if kind == "methods":
        _print_methods(console)
    elif kind == ALL:
        for one in PARTS:
            _print_kind(console, one)
        console.print("  any timm or torchvision name, or package.module:function", highlight=False)
    elif kind in PARTS:
        _print_kind(console, kind)
    else:
        raise SettingError("--list", f"'{kind}'", f"one of {', '.join(PARTS)}, or nothing for all")


def _print_kind(console: Console, kind: str) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, line in describe(PARTS[kind]):
        table.add_row(f"  {name}", line)
    console.print(f"[bold]{kind}[/bold]")
    console.print(table, highlight=False)


def _print_methods(console: Console) -> None:
    from fskd.runs.overview import overview, short  # it takes the training loop

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("paper", width=18 if console.width < NARROW else None, overflow="fold")
    table.add_column("needs", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("networks", overflow="fold")
    table.add_column("queries", no_wrap=True)
    between = "\n" if console.width < WIDE else ", "
    family = None
    for one in overview():
        if one.family != family:
            family = one.family
            table.add_row(f"[cyan]{family}[/cyan]")
        paper = ["-"] if one.paper is None else [one.paper.short, one.paper.place]
        needs = ", ".join(one.needs)
        cited = between.join(filter(None, paper))
        table.add_row(f" {one.name}", cited, needs, short(one.rows), one.networks, one.asked)
    console.print(table, highlight=False)
    for line in LEGEND:
        console.print(f"[dim]{line}[/dim]", highlight=False)
