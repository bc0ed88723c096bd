"""All tables of one report, made once; figures, texts and exports read them and compute nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from fskd.results.curves import (
    LOWER_IS_BETTER,
    aggregate_table,
    area_table,
    cost_table,
    curve_table,
    equivalence_table,
    paired_table,
)
from fskd.results.matching import SETUP, baseline_of, students
from fskd.results.style import Style, styles

MARKS = {
    "u": ("unequal_steps", "updates unequal to the baseline's"),
    "r": ("unequal_student_rows", "student rows unequal to the baseline's"),
    "q": ("unequal_teacher_queries", "teacher queries unequal to the baseline's"),
    "x": ("mixed_splits", "a pair left out, because its splits differ"),
    "b": ("no_baseline", "the baseline was not run at this size"),
}
"""Letter -> column of the curve table, and what the letter says."""


class Measure(NamedTuple):
    """How a measure is written: name, unit, factor from the tables' unit, decimals."""

    name: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3

    @property
    def label(self) -> str:
        """Name and unit, for axes and headings."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def step(self) -> str:
        """Unit of differences."""
        return {"%": "points"}.get(self.unit, self.unit)


MEASURES = {
    "top1": Measure("top-1 accuracy", "%", 100, 2),
    "top5": Measure("top-5 accuracy", "%", 100, 2),
    "val_top1": Measure("validation top-1", "%", 100, 2),
    "train_top1": Measure("training top-1", "%", 100, 2),
    "agreement": Measure("agreement with the teacher", "%", 100, 2),
    "nll": Measure("negative log-likelihood", "nats"),
    "ece": Measure("expected calibration error"),
    "tv_train": Measure("distance to the teacher, training points"),
    "tv_test": Measure("distance to the teacher, test points"),
    "tv_paths": Measure("distance to the teacher, between training points"),
}
CALIBRATION = ("ece", "nll")
FIDELITY = ("agreement", "tv_test", "tv_train", "tv_paths")


def measure_of(name: str) -> Measure:
    """How a column is written; columns without an entry of their own by their name."""
    return MEASURES.get(name, Measure(name))


class Setup(NamedTuple):
    """A data set and a pair of networks.

    Attributes:
        number: Place in the report, from 1.
        names: dataset, student, teacher.
        teacher_top1: Mean accuracy of the teachers, NaN if unknown.
        full: Mean of the baseline on all data, NaN if it was not run.
    """

    number: int
    names: tuple[str, str, str]
    teacher_top1: float
    full: float

    @property
    def networks(self) -> str:
        """Teacher and student."""
        _, student, teacher = self.names
        return f"{teacher} → {student}" if teacher else student

    @property
    def title(self) -> str:
        """Data set and networks."""
        return ", ".join(filter(None, (self.names[0], self.networks)))

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that belong to this setup."""
        here = pd.Series(True, table.index)
        for column, name in zip(SETUP, self.names, strict=True):
            here &= table[column] == name
        return table[here]


@dataclass(frozen=True)
class View:
    """The tables of ``curves`` for one measure and baseline, and the look of the arms.

    Attributes:
        table: The tidy table.
        baseline: The arm that others are compared with, or "".
        measure: Column that is drawn.
        others: Curves of calibration and fidelity, by measure; those without values are absent.
    """

    table: pd.DataFrame
    baseline: str
    measure: str
    setups: list[Setup]
    styles: dict[str, Style]
    curve: pd.DataFrame
    paired: pd.DataFrame
    equivalence: pd.DataFrame
    area: pd.DataFrame
    cost: pd.DataFrame
    aggregate: pd.DataFrame
    others: dict[str, pd.DataFrame]

    @property
    def arms(self) -> list[str]:
        """All arms, in the order of legends and tables."""
        return list(self.styles)

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Name and contents of every table."""
        for name in ("curve", "paired", "equivalence", "area", "cost", "aggregate"):
            yield name, getattr(self, name)
        for measure, curve in self.others.items():
            yield f"curve_{measure}", curve


def make_view(table: pd.DataFrame, baseline: str | None = None, measure: str = "top1") -> View:
    """Computes all tables.

    Raises:
        SettingError: If there is no such arm or no such measure.
    """
    name = baseline_of(table, baseline)
    given = name or None
    curve = curve_table(table, given, measure=measure)
    others = {
        other: found
        for other in (*CALIBRATION, *FIDELITY)
        if other != measure and not (found := curve_table(table, given, measure=other)).empty
    }
    return View(
        table, name, measure, _setups(table, curve, name, measure), styles(curve["arm"]), curve,
        paired_table(table, given, measure=measure),
        equivalence_table(table, given, measure=measure),
        area_table(table, given, measure=measure),
        cost_table(table, measure=measure),
        aggregate_table(table, given, measure=measure),
        others,
    )  # fmt: skip


def _setups(table: pd.DataFrame, curve: pd.DataFrame, baseline: str, measure: str) -> list[Setup]:
    rows, found = students(table), []
    for number, names in enumerate(sorted(set(zip(*(curve[c] for c in SETUP), strict=True))), 1):
        setup = Setup(number, names, float("nan"), float("nan"))
        mine = setup.of(rows)
        whole = mine[(mine["arm"] == baseline) & (mine["fraction"] == 1)]
        found.append(
            setup._replace(
                teacher_top1=float(mine["teacher_top1"].mean()),
                full=float(whole[measure].astype("float64").mean()),
            )
        )
    return found


def marks(row: pd.Series, letters: str = "".join(MARKS)) -> str:
    """Letters of what a reader must know of a row of the curve table.

    A baseline that was not run says nothing of arms on their own, so without any baseline there is
    no such mark.
    """
    return "".join(letter for letter in letters if bool(row[MARKS[letter][0]]))


def usual(counts: pd.Series) -> int:
    """The most frequent number of seeds, the largest of several."""
    return int(max(counts.mode(), default=0))


def better_is_lower(measure: str) -> bool:
    """Whether small values are good."""
    return measure in LOWER_IS_BETTER
