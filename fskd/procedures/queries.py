"""What procedures with a query budget share: its size, its division, and the ledger."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from pydantic import Field

from fskd.errors import SettingError
from fskd.methods.base import BareSettings
from fskd.methods.objective import Objective
from fskd.procedures.base import Hands, Labelled, Procedure
from fskd.teachers.table import Table

SYNTHETIC = 12  # images for each real one: 24,000 for 2,000 digits in FS-BBT's code


class BudgetSettings(BareSettings):
    """The soft targets, and the budget."""

    temperature: float = Field(1.0, gt=0)
    queries: int | None = Field(
        None, ge=1, description="Rows asked about in all; teacher.queries, or 13 n, if none."
    )

    def objective(self) -> Objective:
        return Objective(0.0, 1.0, 0.0, temperature=self.temperature)


class Budgeted(Procedure):
    """Base of procedures whose students learn from images that a black box has labelled."""

    needs = Procedure.needs._replace(one_process=True)
    makes_images = True
    family = "few-sample"


def allowed(own: int | None, budget: int | None, n_train: int, least: int) -> int:
    """Rows that may be asked about in all: the method's setting, the teacher's, or 13 n.

    Args:
        own: ``method.queries``, or None.
        budget: Rows that ``teacher.queries`` leaves, or None.
        n_train: n.
        least: Rows without which there is no point in beginning.

    Raises:
        SettingError: If they do not suffice, or one setting exceeds the other.

    Example:
        >>> allowed(None, None, 100, 101), allowed(None, 500, 100, 101)
        (1300, 500)
    """
    if own is not None and budget is not None and own > budget:
        raise SettingError("method.queries", own, f"at most {budget:,}, as teacher.queries allows")
    default = (1 + SYNTHETIC) * n_train
    found = own if own is not None else budget if budget is not None else default
    if found < least:
        setting = "teacher.queries" if own is None else "method.queries"
        accepted = f"at least {least:,}: the {n_train:,} images of the subset and some made of them"
        raise SettingError(setting, found, accepted)
    return found


def check_mixes(n_train: int) -> None:
    """SettingError unless there are two images to mix."""
    if n_train < 2:
        raise SettingError("data", f"a subset of {n_train} image", "at least two, to be mixed")


def check_answers(name: str, teacher: object) -> None:
    """SettingError if a teacher cannot be asked about new images."""
    if isinstance(teacher, Table):
        accepted = "one that can be asked about new images"
        raise SettingError(f"method.{name}", f"{teacher.kind} as its teacher", accepted)


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that add up to a total: one each, the rest in proportion to weights.

    Example:
        >>> spread(11, [1, 1, 1, 1]), spread(11, [1, 2, 3])
        ([2, 3, 3, 3], [2, 4, 5])
    """
    rest, ends = total - len(weights), [0, *accumulate(weights)]
    ends = [rest * end // ends[-1] for end in ends]
    return [1 + end - start for start, end in pairwise(ends)]


def entry(hands: Hands, asked: int, updates: int, made: Labelled) -> dict[str, Any]:
    """One round of the ledger, which is also shown.

    Args:
        hands: The run.
        asked: Rows that the teacher was asked about in this round.
        updates: Of the student.
        made: What it was trained on.
    """
    images, queries = len(made.images), hands.teacher.queries
    hands.say(
        f"asked about {asked:,} images ({queries:,} rows in all), then {updates:,} updates on"
        f" {images:,}"
    )
    return {"asked": asked, "queries": queries, "updates": updates, "images": images}
