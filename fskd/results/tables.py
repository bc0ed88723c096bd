"""Final tables on the terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fskd.results.names import usual_baseline
from fskd.results.stats import half_width, spread
from fskd.results.store import Result
from fskd.results.summary import Arm, accuracies, arms, matched_gain, unequal_budgets

MOST_PAIRS = 15  # six arms, each with each; nobody reads more lines


def show_results(
    results: Sequence[Result], console: Console, names: Mapping[str, str] | None = None
) -> None:
    """One run as a list of facts; several as a table by arm with paired differences.

    Args:
        results: The runs.
        console: Where they are shown.
        names: Key -> name of the arm, of runs that a protocol has names for.
    """
    if len(results) == 1:
        _show_one(results[0], console)
    else:
        _show_many(results, console, names or {})


def percent(value: float | None) -> str:
    """A share in percent with two decimals.

    Example:
        >>> percent(0.98765), percent(None)
        ('98.77 %', '-')
    """
    return "-" if value is None else f"{100 * value:.2f} %"


def _subset(result: Result) -> str:
    data = result.config["data"]
    chosen = result.split_file if data.get("split_file") else data["sampler"]["name"]
    if result.episodes is not None:
        task = f"{result.num_classes}-way {data['shots']}-shot"
        chosen = f"{task} episodes, {data['sampler']['queries']} queries a class"
    hidden = f" and {result.n_unlabelled:,} without labels" if result.n_unlabelled else ""
    split = f"split {result.split_sha256[:8]}"
    return f"{result.n_train} {data['name']} images ({chosen}, {split}){hidden}"


def _teacher(result: Result) -> str:
    if result.teacher is None:
        return "none"
    size = result.teacher.get("n_train")
    origin = f"trained on {size} images" if size else "given"
    top1 = result.teacher.get("top1")
    known = "" if top1 is None else f", top-1 {percent(top1)}"
    return f"{result.teacher['name']}{known} ({origin})"


def _top1(result: Result) -> str:
    episodes = result.episodes
    if episodes is None or episodes["interval"] is None:
        return percent(result.top1)
    half, std = percent(episodes["interval"]), percent(episodes["std"])
    return (
        f"{percent(result.top1)} +- {half} (mean and 95 % interval over {episodes['n']} episodes,"
        f" std {std})"
    )


def _show_one(result: Result, console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = [
        ("teacher", _teacher(result)),
        ("student", f"{result.config['student']}, {result.method}, seed {result.seed}"),
        ("trained on", _subset(result)),
        ("top-1", _top1(result)),
    ]
    if result.top5 is not None:
        rows.append(("top-5", percent(result.top5)))
    if result.val_top1 is not None:
        rows.append(("validation top-1", percent(result.val_top1)))
    rows += [("NLL, ECE", f"{result.nll:.3f} nats, {result.ece:.3f}")]
    rows += [(f"{name} top-1", percent(what["top1"])) for name, what in result.measured.items()]
    if result.agreement is not None:
        rows.append(("agrees with teacher", percent(result.agreement)))
    distances = {
        "on train": result.tv_train, "between": result.tv_paths, "on test": result.tv_test
    }  # fmt: skip
    known = [f"{value:.3f} {where}" for where, value in distances.items() if value is not None]
    if known:
        rows.append(("distance to teacher", ", ".join(known)))
    if result.searches:
        last = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result.searches[-1].items()
        )
        rows.append(("searches", f"{len(result.searches)}, the last: {last}"))
    queries = f"{result.teacher_queries:,} teacher queries"
    rows += [
        ("cost", f"{result.steps:,} updates, {result.student_rows:,} student rows, {queries}"),
        ("seconds", ", ".join(f"{name} {value:g}" for name, value in result.seconds.items())),
        ("files", result.path),
    ]
    rows += [("doubtful", line) for line in result.doubts]
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table, highlight=False)


def _print(console: Console, text: str, style: str = "") -> None:
    # Text, because a name may look like markup; not wrapped, because paths are copied.
    console.print(Text(text, style), soft_wrap=True)


def _show_many(results: Sequence[Result], console: Console, names: Mapping[str, str]) -> None:
    groups = arms(results, names)
    told = ("name",) if all(arm.name for arm in groups) else ("method", "generator", "settings")
    columns = ("data", "n", "student", *told)
    varying = [c for c in columns if len({getattr(arm, c) for arm in groups}) > 1]
    fixed = [f"{c} {getattr(groups[0], c)}" for c in columns if c not in (*varying, "settings")]
    _print(console, ", ".join(fixed), "bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in varying:
        table.add_column("arm" if column == "name" else column, overflow="fold")
    numbers = ["seeds", "top-1 %", "std", "NLL", "ECE", "agree %", "updates", "rows", "queries"]
    if console.width < 100:  # the rest is in the files
        numbers = ["seeds", "top-1 %", "std", "updates"]
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in groups:
        values = _numbers(arm.runs)
        table.add_row(*(Text(getattr(arm, c)) for c in varying), *(values[c] for c in numbers))
    console.print(table, highlight=False)
    for line in _explanations(results):
        _print(console, line)
    for baseline, ours in _pairs(groups, console):
        _show_difference(ours, baseline, console)
    if unequal_budgets(results):
        _print(console, "note: updates or student rows differ between arms; see the table")
    folders = {result.path.rpartition("/")[0] or "." for result in results}
    _print(console, f"files: {', '.join(sorted(folders))}")


def _pairs(groups: Sequence[Arm], console: Console) -> list[tuple[Arm, Arm]]:
    """Arms of the same setup, baseline first; of many only those with one baseline."""
    pairs = [(a, b) for a, b in combinations(groups, 2) if a.setup == b.setup]
    if len(pairs) <= MOST_PAIRS:
        return pairs
    names = [arm.name or arm.method for arm in groups]
    chosen = usual_baseline(names) or names[0]
    _print(console, f"note: differences from {chosen} only; a report has others (--baseline ARM)")
    return [
        (baseline, ours)
        for baseline, name in zip(groups, names, strict=True)
        for ours in groups
        if name == chosen and ours is not baseline and ours.setup == baseline.setup
    ]


def _explanations(results: Sequence[Result]) -> Iterator[str]:
    """What the numbers of a table refer to."""
    for teacher in dict.fromkeys(_teacher(r) for r in results if r.teacher):
        yield f"teacher: {teacher}"
    if any(result.episodes for result in results):
        yield "top-1 of episodes: mean +- 95 % interval, std over episodes"
    for line in dict.fromkeys(line for result in results for line in result.doubts):
        yield f"doubtful: {line}"


def _numbers(runs: Sequence[Result]) -> dict[str, str]:
    each = [100 * value for run in runs for value in accuracies(run)]
    top1, half = spread(each), half_width(each) if len(each) > len(runs) else None
    agree = [100 * r.agreement for r in runs if r.agreement is not None]
    return {
        "seeds": str(len(runs)),
        "top-1 %": f"{top1.mean:.2f}" + ("" if half is None else f" +- {half:.2f}"),
        "std": f"{top1.std:.2f}" if top1.n > 1 else "-",
        "NLL": f"{fmean(r.nll for r in runs):.3f}",
        "ECE": f"{fmean(r.ece for r in runs):.3f}",
        "agree %": f"{fmean(agree):.2f}" if agree else "-",
        "updates": _common([r.steps for r in runs]),
        "rows": _common([r.student_rows for r in runs]),
        "queries": _common([r.teacher_queries for r in runs]),
    }


def _common(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _show_difference(ours: Arm, baseline: Arm, console: Console) -> None:
    """One line, if there are matched runs."""
    difference = matched_gain(ours.runs, baseline.runs)
    if difference is None:
        return
    names = [ours.name or ours.method, baseline.name or baseline.method]
    if names[0] == names[1]:
        names = [
            f"{arm.method} ({', '.join(filter(None, (arm.generator, arm.settings)))})"
            for arm in (ours, baseline)
        ]
    error = "" if math.isnan(difference.error) else f" +- {100 * difference.error:.2f}"
    what = "seed" if ours.runs[0].episodes is None else "episode"
    n = f"1 {what}" if difference.n == 1 else f"{difference.n} {what}s, +- standard error"
    _print(
        console,
        f"paired difference {names[0]} - {names[1]} on {ours.n} images:"
        f" {100 * difference.mean:+.2f}{error} points ({n})",
    )
