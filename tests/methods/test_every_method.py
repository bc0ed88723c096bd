"""Every method does the main job, alone and composed with KD+, from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fskd.methods.base import methods
from fskd.results.store import Result

# What a method asks of the command beside its name.
NEEDS = {
    "meal_v2": ["--teacher", "cnn_tiny+cnn_tiny"],
    "mixmatch": ["--unlabelled", "rest", "--set", "data.augment.affine=1"],
    "remixmatch": ["--unlabelled", "rest", "--set", "data.augment.affine=1"],
}
# Labels made by a method itself leave no place for others'.
ALONE = {"mixmatch", "remixmatch"}


def did(name: str, command: Callable[..., tuple[int, str, str]], out: Path) -> Result:
    """The result of a few steps on 50 digits; student and teacher have equal stages."""
    own = NEEDS.get(name.rpartition("+")[2], ["--teacher", "cnn_tiny"])
    size = ["--shots", "5", "--steps", "6", "--student", "cnn_tiny", "--quiet"]
    options = ["--method", name, *size, *own, "--set", "teacher.budget.steps=6"]
    code, _, errors = command(*options, "--force")
    assert code == 0, errors
    made = [Result.from_json(file.read_text()) for file in out.glob("*/result.json")]
    return next(one for one in made if one.method == name and one.steps == 6 and one.n_train == 50)


@pytest.mark.parametrize("name", methods.names())
def test_alone(name: str, command: Callable[..., tuple[int, str, str]], out: Path) -> None:
    assert did(name, command, out).student_rows > 0


@pytest.mark.parametrize("name", sorted({*methods.names()} - ALONE - {"kdplus"}))
def test_with_kdplus(name: str, command: Callable[..., tuple[int, str, str]], out: Path) -> None:
    """Generated points are there, and what the method adds."""
    result = did(f"kdplus+{name}", command, out)
    assert "generated" in result.final_loss
