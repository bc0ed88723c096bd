"""``python -m fskd.split``: make, verify, look at, exchange and compare orders of examples."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fskd.command import examples, make_console, run_command, whole
from fskd.errors import DataError, SettingError

if TYPE_CHECKING:
    from fskd.config import RunConfig
    from fskd.types import ImageSet, Ranking

EXAMPLES = (
    (
        "Ten class-balanced orders of Fashion-MNIST",
        "make --dataset fashion_mnist --sampler stratified --seeds 0-9",
    ),
    ("Check every file that comes with fskd", "verify"),
    (
        "See what 10 examples per class are",
        "show data_splits/digits/stratified-seed0.npz --shots 10",
    ),
    (
        "Use the same examples elsewhere",
        "export data_splits/digits/stratified-seed0.npz --format torch --fraction 0.1",
    ),
    (
        "Use the labelled examples of a published run",
        "import lb_labels40_1_seed1_idx.npy --dataset cifar10 --name usb40",
    ),
    ("How much two choices overlap", "diff A.npz B.npz --fraction 0.01,0.1"),
    ("Test images that are in the training set", "dedupe --dataset fashion_mnist"),
)
PROGRAM = "python -m fskd.split"
app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    epilog=examples(PROGRAM, EXAMPLES),
    help="Orders of training examples: files that give everybody the same subsets.",
)

File = Annotated[Path, typer.Argument(help="Split file (.npz).")]
Dataset = Annotated[str, typer.Option(help="Data set.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder or file of the data.")]
Fraction = Annotated[float | None, typer.Option(help="Share of the training set, in (0, 1].")]
Shots = Annotated[int | None, typer.Option(min=1, help="Examples per class.")]
Number = Annotated[int | None, typer.Option("--n", min=1, help="Examples in all.")]
Out = Annotated[Path, typer.Option(help="Folder of split files.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that hold another order.")]
SPLITS = Path("data_splits")


@app.command()
def make(
    dataset: Dataset = "digits",
    sampler: Annotated[str, typer.Option(help="Which examples come first.")] = "stratified",
    seeds: Annotated[str, typer.Option(help="Split seeds, such as 0-9 or 0,2,5.")] = "0",
    out: Out = SPLITS,
    data_root: DataRoot = None,
    force: Force = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE ...", help="Any setting of a run."),
    ] = None,
) -> None:
    """Make split files; samplers that read a teacher train or reuse the default one."""
    from fskd.data.manifest import save_split
    from fskd.runs.ranking import split_name

    extra = "".join(f" --set {text}" for text in override or [])
    command = (
        f"python -m fskd.split make --dataset {dataset} --sampler {sampler} --seeds {seeds}{extra}"
    )
    layer = {"name": dataset, "sampler": sampler, "root": data_root and str(data_root)}
    for seed in _seeds(seeds):
        config, ranking, seconds = _rank({**layer, "split_seed": seed}, override or [])
        name = split_name(config.data)
        written = save_split(out, name, ranking, command, force)
        state = "written" if written else "unchanged"
        print(f"{out / name}  order {ranking.sha256}  {seconds:.2f} s  {state}")


def _rank(data: dict[str, object], overrides: list[str]) -> "tuple[RunConfig, Ranking, float]":
    """The settings, the order made anew, and the seconds that it took."""
    from fskd.config import Runtime
    from fskd.raw import merge, parse_override
    from fskd.resolve import resolve, validate

    layer: dict[str, object] = {"data": data, "method": "ce"}
    for text in overrides:
        layer = merge(layer, parse_override(text))
    runtime = validate(Runtime, layer.pop("runtime", {}), "runtime")
    config = resolve(layer, {"data": {"splits": "none"}})

    from fskd.runs.prepare import NOTHING_GIVEN, prepare
    from fskd.runs.runner import rank_by_teacher
    from fskd.runs.screen import make_screen
    from fskd.runs.session import Session

    begun = time.perf_counter()
    job = prepare(config, Path(runtime.out))
    if job.ranking is not None:
        return config, job.ranking, time.perf_counter() - begun
    session, seconds = Session(runtime, make_screen(runtime.quiet)), dict[str, float]()
    ranking = rank_by_teacher(job, session, NOTHING_GIVEN, seconds)
    return config, ranking, seconds["split"]


def _seeds(text: str) -> list[int]:
    """Numbers from ``0-9`` or ``0,2,5``."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin = whole("--seeds", first, 0)
        found += range(begin, whole("--seeds", last, begin) + 1) if dash else [begin]
    return found


@app.command()
def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files or folders of them.", show_default="those that come with fskd"),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Check split files: bytes, contents, the data they belong to, and the seed."""
    from rich.table import Table
    from rich.text import Text

    from fskd.data.manifest import shipped
    from fskd.data.split_check import places
    from fskd.data.split_check import verify as check

    found = [check(folder, name, data_root) for folder, name in places(files or [shipped()])]
    if not found:
        raise DataError("no split files there")
    table = Table("file", "order", "state", box=None, pad_edge=False)
    for one in found:
        state = one.problem or ("ok" if not one.unchecked else f"ok; {one.unchecked}")
        table.add_row(Text(one.name), one.sha256[:12], Text(state))
    make_console().print(table, highlight=False)
    failed = [one for one in found if one.problem]
    if failed:
        raise DataError(f"{len(failed)} of {len(found)} files failed; {failed[0].problem}")


@app.command()
def show(
    file: File,
    fraction: Fraction = None,
    shots: Shots = None,
    n: Number = None,
    png: Annotated[
        Path | None, typer.Option(help="Picture to write.", show_default="FILE-<size>.png here")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Show how many examples of each class are chosen, and make a picture of them."""
    import torch

    from fskd.data.contact_sheet import contact_sheet, write_png
    from fskd.data.manifest import read_listed
    from fskd.data.split_export import chosen_of, images_of
    from fskd.results.store import check_writable

    ranking = read_listed(file)
    images = images_of(ranking, data_root)
    chosen, label = chosen_of(ranking, images, fraction, shots, n)
    counts = torch.bincount(images.targets[chosen], minlength=images.num_classes).tolist()
    width = max(map(len, images.classes))
    print(f"{file.name}: {len(chosen)} of {len(images)} {ranking.dataset} images")
    for name, count in zip(images.classes, counts, strict=True):
        print(f"{name:>{width}} {count:6} {'#' * round(40 * count / max(counts))}".rstrip())
    place = png or Path(f"{file.stem}-{label}.png")
    check_writable(place.parent, "--png")
    write_png(place, contact_sheet(images, chosen))
    print(f"picture: {place}")


@app.command()
def export(
    file: File,
    form: Annotated[str, typer.Option("--format", help="csv, json, hf or torch.")] = "csv",
    fraction: Fraction = None,
    shots: Shots = None,
    n: Number = None,
    to: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="csv, json: the terminal")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Give the chosen indices to other programs."""
    from fskd.data.manifest import read_listed
    from fskd.data.split_export import EXPORTS, SNIPPETS, chosen_of, images_of
    from fskd.results.store import check_writable, write_text

    if form not in EXPORTS:
        raise SettingError("--format", f"'{form}'", f"one of {', '.join(EXPORTS)}")
    ranking = read_listed(file)
    # Numbers per class need the labels; the other sizes do not need the data.
    images = None if shots is None else images_of(ranking, data_root)
    chosen, label = chosen_of(ranking, images, fraction, shots, n)
    text = EXPORTS[form](ranking, chosen)
    if to is None and form in SNIPPETS:
        to = Path(f"{file.stem}-{label}.json")
    if to is None:
        print(text, end="")
        return
    check_writable(to.parent, "--to")
    write_text(to, text)
    print(SNIPPETS[form].format(file=to.as_posix()) if form in SNIPPETS else f"written: {to}")


@app.command("import")
def import_list(
    file: Annotated[Path, typer.Argument(help="Indices: .txt, .csv, .json or .npy.")],
    name: Annotated[str, typer.Option(help="Name of the new file.")],
    dataset: Dataset = "digits",
    out: Out = SPLITS,
    seed: Annotated[int, typer.Option(min=0, help="Split seed of the examples that follow.")] = 0,
    data_root: DataRoot = None,
    force: Force = False,
) -> None:
    """Make a split file that begins with the examples others chose."""
    from fskd.data.manifest import save_split
    from fskd.data.split_export import imported

    if not name.replace("-", "").replace("_", "").isalnum():
        raise SettingError("--name", f"'{name}'", "letters, digits, - and _")
    ranking, given = imported(file, name, dataset, data_root, seed)
    place = f"{dataset}/imported-{name}.npz"
    command = f"python -m fskd.split import {file.name} --dataset {dataset} --name {name}"
    save_split(out, place, ranking, f"{command} --seed {seed}", force)
    print(f"{out / place}  order {ranking.sha256}  {given} examples, then stratified")
    print(
        f"use: python -m fskd.run --dataset {dataset} --n {given}"
        f" --set data.split_file={out / place}"
    )


@app.command()
def diff(
    a: File,
    b: File,
    fraction: Annotated[str, typer.Option(help="Sizes to compare.")] = "0.01,0.05,0.1,0.25,0.5",
    data_root: DataRoot = None,
) -> None:
    """Compare two orders of the same data: what they share, in all and per class."""
    from rich.table import Table
    from rich.text import Text

    from fskd.data.manifest import read_listed
    from fskd.data.split_export import compare, images_of, size_of

    first, second = read_listed(a), read_listed(b)
    if first.fingerprint != second.fingerprint:
        raise DataError(f"{a.name} and {b.name} belong to different data")
    try:
        sizes = {share: size_of(first, float(share)) for share in fraction.split(",")}
    except ValueError:
        raise SettingError("--fraction", f"'{fraction}'", "numbers in (0, 1]") from None
    try:
        images, reason = images_of(first, data_root), ""
    except (DataError, SettingError) as error:
        images, reason = None, str(error)
    table = Table("fraction", "n", "shared", "by chance", "Jaccard", box=None, pad_edge=False)
    for column in images.classes if images is not None else ():
        table.add_column(Text(column), justify="right")
    for share, size in sizes.items():
        table.add_row(share, *compare(first.order[:size], second.order[:size], len(first.order)),
                      *_per_class(first, second, size, images))  # fmt: skip
    make_console().print(table, highlight=False)
    if reason:
        print(f"not per class: {reason}")


def _per_class(
    first: "Ranking", second: "Ranking", size: int, images: "ImageSet | None"
) -> list[str]:
    from fskd.data.split_export import shared

    if images is None:
        return []
    both = shared(first.order[:size], second.order[:size])
    return [str(int((images.targets[both] == k).sum())) for k in range(images.num_classes)]


@app.command()
def dedupe(
    dataset: Dataset = "fashion_mnist",
    threshold: Annotated[
        float, typer.Option(min=0, max=2, help="Largest distance, 1 - correlation.")
    ] = 0.003,
    to: Annotated[
        Path | None, typer.Option(help="CSV to write.", show_default="duplicates-DATASET.csv")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Report test images that are also, or nearly, in the training set."""
    from fskd.data.datasets.base import Source, load
    from fskd.data.dedupe import near_duplicates, summary, to_csv
    from fskd.results.store import check_writable, write_text

    place = to or Path(f"duplicates-{dataset}.csv")
    check_writable(place.parent, "--to")
    data = load(dataset, Source(data_root))
    begun = time.perf_counter()
    pairs = near_duplicates(data, threshold)
    seconds = time.perf_counter() - begun
    write_text(place, to_csv(pairs, data))
    for line in summary(pairs, data, threshold):
        print(line)
    print(f"pairs: {place} ({seconds:.0f} s)")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 for bad input)."""
    return run_command(app, PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
