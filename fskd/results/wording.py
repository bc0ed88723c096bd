"""What the tables show and do not show, in sentences; every number comes from a table."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from fskd.results.evidence import Evidence
from fskd.results.grids import needed_text
from fskd.results.names import BASELINES
from fskd.results.view import MARKS, Setup, View, better_is_lower, measure_of

ALPHA = 0.05


def shown(view: View) -> list[str]:
    """One or more sentences a setup: who leads where, by how much, and what that is worth."""
    sentences = []
    for setup in view.setups:
        sentences.append(_leaders(view, setup))
        sentences += _gain(view, setup)
        sentences += _worth(view, setup)
    return sentences


def not_shown(view: View, evidence: Evidence) -> list[str]:
    """What must not be concluded."""
    parts = (
        _no_baseline(view), _intervals(view), _few_seeds(view), _single(view), _unequal(view),
        _refused(view), _outside(view), _teachers(view), _doubtful(view),
        _absent(view, evidence), _scope(view),
    )  # fmt: skip
    return [sentence for part in parts for sentence in part]


def _leaders(view: View, setup: Setup) -> str:
    """Which arm has the best mean at which sizes."""
    about, rows = measure_of(view.measure), setup.of(view.curve)
    leaders: dict[str, list[int]] = {}
    ties: list[int] = []
    lower = better_is_lower(view.measure)
    for size, alike in rows.groupby("n_train", sort=True):
        best = alike["mean"].min() if lower else alike["mean"].max()
        ahead = alike.loc[alike["mean"] == best, "arm"]
        ties += [size] if len(ahead) > 1 else []  # type: ignore[list-item]
        leaders.setdefault(" and ".join(ahead), []).append(size)  # type: ignore[arg-type]
    sizes = rows["n_train"].nunique()
    word = "lowest" if lower else "highest"
    if rows["arm"].nunique() == 1:
        low, high = rows["mean"].min() * about.scale, rows["mean"].max() * about.scale
        spread = number(low, about.digits) + (
            f" to {number(high, about.digits)}" if high > low else ""
        )
        return f"On {setup.title}: {rows['arm'].iloc[0]} alone, mean {about.label}: {spread}."
    told = []
    for arm, at in leaders.items():
        where = f"at all {sizes} sizes" if len(at) == sizes > 1 else f"with {_sizes(at)} examples"
        verb = "have" if " and " in arm and set(at) <= set(ties) else "has"
        told.append(f"{arm} {verb} the {word} mean {about.name} {where}")
    return f"On {setup.title}: {'; '.join(told)}."


def _gain(view: View, setup: Setup) -> Iterator[str]:
    """The paired differences of the arm with the largest mean gain, with intervals."""
    about, rows = measure_of(view.measure), setup.of(view.paired)
    rows = rows[rows["n"] > 0].sort_values("n_train")
    if rows.empty:
        return
    means = rows.groupby("arm")["mean"].mean()
    arm = means.idxmin() if better_is_lower(view.measure) else means.idxmax()
    mine = rows[rows["arm"] == arm]
    parts = [
        f"{row['mean'] * about.scale:+.{about.digits}f}{_span(row, about.scale, about.digits)}"
        f" with {row['n_train']:,} examples (n = {row['n']})"
        for _, row in mine.iterrows()
    ]
    unit = f" {about.step}" if about.step else ""
    lead = "" if rows["arm"].nunique() == 1 else ", the largest mean difference of all arms"
    what = f"Over matched runs, {arm} minus {view.baseline}{lead}, in{unit or ' its unit'}"
    yield f"{what}: {_list(parts)}. In brackets: 95 % intervals."
    crossing = mine.loc[(mine["low"] <= 0) & (mine["high"] >= 0), "n_train"]
    if len(crossing):
        yield f"With {_sizes(list(crossing))} examples that interval includes 0: no gain is shown."


def _span(row: pd.Series, scale: float, digits: int) -> str:
    if not np.isfinite(row["low"]):
        return ""
    return f" [{row['low'] * scale:+.{digits}f}, {row['high'] * scale:+.{digits}f}]"


def _worth(view: View, setup: Setup) -> Iterator[str]:
    """The largest data-equivalence that has a number."""
    rows = setup.of(view.equivalence)
    known = rows[rows["ratio"].notna()]
    if known.empty:
        return
    row = known.sort_values("ratio").iloc[-1]
    if row["ratio"] <= 1:
        return
    bounds = (
        "" if pd.isna(row["low"]) else f" [{needed_text(row, 'low')}, {needed_text(row, 'high')}]"
    )
    yield (
        f"With {row['n_train']:,} examples {row['arm']} reaches what {view.baseline} needs"
        f" {needed_text(row, 'needed')}{bounds} for (n = {row['n']})."
    )


def _no_baseline(view: View) -> Iterator[str]:
    if not view.baseline:
        names = " or ".join(BASELINES)
        yield f"There is no arm {names}, so nothing is compared; --baseline names another."
    elif view.paired.empty and len(view.arms) > 1:
        yield f"No arm was run with {view.baseline} at the same size, so no difference is known."


def _intervals(view: View) -> Iterator[str]:
    """How many intervals of differences include zero."""
    known = view.paired[view.paired["low"].notna()]
    if known.empty:
        return
    crossing = known[(known["low"] <= 0) & (known["high"] >= 0)]
    if len(crossing):
        names = [f"{arm} ({len(rows)})" for arm, rows in crossing.groupby("arm", sort=True)]
        total = plural(len(known), "paired difference")
        yield (
            f"For {len(crossing)} of {total} from {view.baseline} the interval includes 0:"
            f" {_list(names)}. There the data do not say which is better."
        )
    if view.paired["arm"].nunique() > 2:
        yield "The arm that leads was picked after looking, which favours luck."


def _few_seeds(view: View) -> Iterator[str]:
    """What the number of pairs allows a test to find."""
    known = view.paired[view.paired["p"].notna()]
    if known.empty:
        return
    least, most = known["smallest_p"].min(), int(known["n"].max())
    below = int((known["p_holm"] < ALPHA).sum())
    if least >= ALPHA:
        yield (
            f"No sign-flip test can give p below {ALPHA}: {plural(most, 'pair')} allow no less than"
            f" {least:.3g}, and 6 are needed for less than {ALPHA}. The intervals rest on the"
            " assumption that differences are normal."
        )
    else:
        yield (
            f"After Holm's correction {below} of {plural(len(known), 'comparison')} have p below"
            f" {ALPHA} (sign-flip test; the smallest p that {plural(most, 'pair')} allow is"
            f" {least:.2g})."
        )


def _single(view: View) -> Iterator[str]:
    single = view.curve[view.curve["single_seed"].astype(bool)]
    if len(single):
        yield f"A single seed has no interval and no band: {_cells(single)}."


def _unequal(view: View) -> Iterator[str]:
    """Comparisons at other costs than the baseline's."""
    others = view.curve[view.curve["arm"] != view.baseline]
    told: dict[str, list[str]] = {}
    for letter in "urq" if view.baseline else "":
        rows = others[others[MARKS[letter][0]].astype(bool)]
        if len(rows):
            what = f"{MARKS[letter][1].split(' unequal')[0]} (mark {letter})"
            told.setdefault(_cells(rows, others), []).append(what)
    for cells, kinds in told.items():
        yield (
            f"Not at equal {_list(kinds)}: {cells}, against {view.baseline}; part of such a"
            " difference may be due to that."
        )


def _refused(view: View) -> Iterator[str]:
    rows = view.paired[view.paired["refused"].ne("")]
    if len(rows):
        count = sum(text.count("seed ") for text in rows["refused"])
        yield f"{plural(count, 'pair')} left out, because the splits differ: {_cells(rows)}."
    unchecked = int(view.paired["unchecked"].sum())
    if unchecked:
        yield f"Of {plural(unchecked, 'pair')} it is not known whether the splits are the same."


def _outside(view: View) -> Iterator[str]:
    rows = view.equivalence
    outside = rows[rows["needed_mark"].ne("")]
    if len(outside):
        yield (
            f"{len(outside)} of {plural(len(rows), 'data-equivalence')} lie outside the sizes that"
            f" {view.baseline} was run with; they are given as bounds and not extrapolated."
        )


def _teachers(view: View) -> Iterator[str]:
    rows = view.table[(view.table["role"] == "student") & view.table["teacher"].ne("")]
    single = []
    for setup in view.setups:
        dataset, _, teacher = setup.names
        mine = rows[(rows["dataset"] == dataset) & (rows["teacher"] == teacher)]
        if len(set(mine["teacher_key"]) - {""}) == 1:
            single.append(dataset)
    if single:
        yield (
            f"All runs of a setup share one trained teacher ({_list(dict.fromkeys(single))}); how"
            " results vary with the teacher's own seed is in no interval."
        )


def _doubtful(view: View) -> Iterator[str]:
    found = view.table.loc[view.table["role"] == "student", "doubts"]
    counts = Counter(line for text in found for line in json.loads(text or "[]"))
    for line, count in counts.items():
        yield f"What went into {plural(count, 'run')} is doubtful: {line}."


def _absent(view: View, evidence: Evidence) -> Iterator[str]:
    counts = {
        "failed": evidence.failed, "not finished": evidence.unfinished,
        "missing": evidence.missing, "unreadable": evidence.unreadable,
    }  # fmt: skip
    told = [f"{len(runs)} {what}" for what, runs in counts.items() if runs]
    if told:
        yield f"Runs that are not in any number here: {_list(told)}; they are named below."
    if gaps := [*_gaps(view)]:
        yield f"Sizes that some arms lack: {'; '.join(gaps)}."


def _gaps(view: View) -> Iterator[str]:
    for setup in view.setups:
        rows = setup.of(view.curve)
        sizes = set(rows["n_train"])
        for arm, mine in rows.groupby("arm", sort=True):
            if lacking := sorted(sizes - set(mine["n_train"])):
                yield f"{arm} with {_sizes(lacking)} examples on {setup.names[0]}"


def _scope(view: View) -> Iterator[str]:
    sets = sorted({setup.names[0] for setup in view.setups})
    pairs = sorted({setup.networks for setup in view.setups})
    yield (
        f"Nothing is said about other data than {_list(sets)}, other networks than {_list(pairs)},"
        " or other settings than those listed below."
    )


def _cells(rows: pd.DataFrame, every: pd.DataFrame | None = None) -> str:
    """Arms and sizes in few words; arms that have all rows of theirs in ``every`` by name only."""
    whole, told = [], []
    several = rows["dataset"].nunique() > 1
    for arm, own in rows.groupby("arm", sort=True):
        if every is not None and len(own) == int((every["arm"] == arm).sum()):
            whole.append(str(arm))
            continue
        parts: dict[str, list[str]] = {}
        for dataset, mine in own.groupby("dataset", sort=True):
            parts.setdefault(_sizes(sorted(set(mine["n_train"]))), []).append(str(dataset))
        where = [
            f"{sizes} examples{f' of {_list(names)}' if several else ''}"
            for sizes, names in parts.items()
        ]
        told.append(f"{arm} ({'; '.join(where)})")
    return "; ".join([*([f"{_list(whole)} at every size"] if whole else []), *told])


def _sizes(sizes: Sequence[int]) -> str:
    return _list([f"{size:,}" for size in sorted(sizes)])


def _list(words: Iterable[str]) -> str:
    """Words with commas and a last "and".

    Example:
        >>> _list(["a", "b", "c"])
        'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def number(value: float, digits: int) -> str:
    """A number with fixed decimals."""
    return f"{value:,.{digits}f}"


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    Example:
        >>> plural(1, "pair"), plural(2, "pair")
        ('1 pair', '2 pairs')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
