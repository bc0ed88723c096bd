"""The table of all methods: complete, and true of runs."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

from fskd.config import Runtime
from fskd.methods.base import Method, Step, methods
from fskd.methods.words import FAMILIES, Needs, Term, Terms, student
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.overview import Entry, entry, example, overview, short
from fskd.runs.runner import run
from fskd.runs.session import Session

DOCS = Path(__file__).parents[2] / "docs"
# A baseline, and an invention of ours.
WITHOUT_PAPER = {"ce", "kdregion"}
# Methods and a number of steps that their phases divide.
COUNTED = {
    "ce": 4, "kd": 4, "kdplus": 4, "at": 4, "eskd": 4, "fsp": 9, "ft": 9, "sskd": 10, "dml": 4,
    "meal_v2": 4, "mixmatch": 4, "remixmatch": 4,
}  # fmt: skip


COSTS = ("student_rows", "teacher_queries")


@pytest.fixture(scope="module")
def table() -> dict[str, Entry]:
    return {one.name: one for one in overview()}


def go(name: str, steps: int, out: Path, **data: Any) -> tuple[Result, int]:
    """What a run recorded, and the rows that plain training draws in as many steps."""
    short_run = {"budget": {"steps": steps}, "teacher": {"budget": {"steps": 20}}}
    raw = example(name)
    raw["teacher"] = {"name": raw["teacher"]} if "teacher" in raw else {}
    config = resolve(merge(raw, {**short_run, "data": data}))
    return run(config, Session(Runtime(out=str(out)))), steps * config.optim.batch_size


def test_every_method_is_there(table: dict[str, Entry]) -> None:
    assert sorted(table) == methods.names()
    for name, one in table.items():
        assert one.family in FAMILIES, name
        assert one.family != "other", f"'{name}' has no family"
        if name not in WITHOUT_PAPER:
            assert one.paper is not None, f"the docstring of '{name}' cites no paper in the form"
            assert 2006 < int(one.paper.year) < 2100
        assert one.rows > 0 or name == "fskd"  # which makes no updates by itself
        assert one.needs
        assert one.remembered < one.queries + 0.001  # each image once, though it may be of no use
    order = [list(FAMILIES).index(one.family) for one in table.values()]
    assert order == sorted(order)


def test_those_without_a_paper_have_none(table: dict[str, Entry]) -> None:
    assert {name for name, one in table.items() if one.paper is None} == WITHOUT_PAPER


@pytest.mark.parametrize("name", methods.names())
def test_those_that_read_labels_say_so(name: str, table: dict[str, Entry]) -> None:
    source = "".join(inspect.getsource(cls) for cls in methods.get(name).__mro__[:-1]
                     if issubclass(cls, Method) and cls is not Method)  # fmt: skip
    if ".targets" in source:
        assert "labels" in table[name].needs


@pytest.mark.parametrize(("name", "steps"), COUNTED.items())
def test_costs_are_those_of_runs(name: str, steps: int, table: dict[str, Entry], out: Path) -> None:
    """Where no view comes twice; rows and queries are whole numbers in results."""
    result, drawn = go(name, steps, out, augment={"flip": True})
    assert result.student_rows == pytest.approx(table[name].rows * drawn, abs=1)
    assert result.teacher_queries == pytest.approx(table[name].queries * drawn, abs=1)


@pytest.mark.parametrize("name", ["kd", "kdplus", "eskd", "at"])
def test_logits_of_images_at_rest_are_asked_once(
    name: str, table: dict[str, Entry], out: Path
) -> None:
    result, drawn = go(name, COUNTED[name], out)
    once = 0 if name == "at" else result.n_train
    assert result.teacher_queries == pytest.approx(table[name].remembered * drawn + once, abs=1)


def test_what_is_needed(table: dict[str, Entry]) -> None:
    """Some that are known."""
    found = {name: set(one.needs) for name, one in table.items()}
    assert found["ce"] == {"labels"}
    assert found["kd"] == {"labels", "logits"}
    assert found["funmatch"] == {"logits", "mixup rows"}
    assert found["kdregion"] == {"logits", "cutmix rows"}  # no real rows
    assert found["mixupkd"] == {"labels", "logits", "mixup rows"}  # nor here, but mixed labels
    assert found["kdplus"] == {"labels", "logits", "mixup rows"}
    assert found["logits_mse"] == {"logits", "no black box"}
    assert found["jacobian"] == {"labels", "logits", "image gradients"}
    assert found["fsp"] == {"labels", "features", "equal widths"}
    assert found["meal_v2"] == {"logits", "2 teachers", "no black box"}
    assert found["mixmatch"] == {"labels", "unlabelled rows"}
    assert found["one"] >= {"labels", "own features"}
    assert found["rkd"] >= {"3 rows a step"}
    assert "labels" in found["knowledge_flow"]


def test_networks(table: dict[str, Entry]) -> None:
    found = {name: one.networks for name, one in table.items()}
    assert found["ce"] == "1"
    assert found["kd"] == "1 + teacher"
    assert found["dml"] == "2"
    assert found["kdgan"] == "2 + teacher"
    assert found["meal_v2"] == "1 + 2 teachers"
    assert found["one"] == "1 + 2 branches"
    assert found["mixmatch"] == "1 + average"
    assert found["lit"] == "1 + 2 sections + teacher"


@pytest.mark.parametrize("name", ["takd", "ban"])
def test_costs_of_chains(name: str, table: dict[str, Entry], tmp_path: Path) -> None:
    """All that is trained for the student's sake, from its result and those of its links."""
    result, drawn = go(name, 4, tmp_path, augment={"flip": True})
    links = [Result.from_json(path.read_text()) for path in tmp_path.glob("*-kd-*/result.json")]
    assert len(links) == 1
    rows, queries = (sum(getattr(one, what) for one in (result, *links)) for what in COSTS)
    assert (rows, queries) == (table[name].rows * drawn, table[name].queries * drawn)
    assert table[name].networks == "2 in turn + teacher"


def test_a_method_that_was_just_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever its class is, and with nothing but terms."""

    class New(Method):
        """Says nothing."""

        passes = (student("logits"),)

        def terms(self, step: Step) -> Terms:
            return {"new": Term(step.student.logits.square().mean())}

    monkeypatch.setitem(methods._parts, "new", New)
    one = entry("new")
    assert (one.family, one.paper, one.rows, one.asked) == ("other", None, 1.0, "0")
    monkeypatch.setattr(New, "needs", Needs(min_rows=1, stages=2, square=True))
    assert entry("new").needs == ("labels", "2 stages", "square images")


def test_numbers() -> None:
    assert [short(x) for x in (0, 1, 10, 1 / 9, 0.5, 3.2)] == ["0", "1", "10", "0.11", "0.5", "3.2"]


def test_page_is_up_to_date(table: dict[str, Entry]) -> None:
    """Otherwise: python docs/make_methods.py."""
    spec = importlib.util.spec_from_file_location("make_methods", DOCS / "make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert made.page(text, list(table.values())) == text, (
        "docs/methods.md is stale: python docs/make_methods.py"
    )
    for name in methods.names():
        assert f"| `{name}` | " in text
    with pytest.raises(ValueError, match="marks of 'cited' 0 times"):
        made.page(text.replace("<!-- end of cited -->", ""), [])
