"""Means, spreads, paired differences, and the tables made of them."""

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fskd.results.stats import spread
from fskd.results.store import Result
from fskd.results.summary import matched_gain, unequal_budgets
from fskd.results.tables import percent, show_results


def make_result(
    method: str = "kd", seed: int = 0, split: str = "a", n_train: int = 50, top1: float = 0.5,
    **changes: object,
) -> Result:  # fmt: skip
    """A result without a teacher, unless one is given."""
    config = {
        "data": {"name": "digits", "sampler": {"name": "stratified"}},
        "student": "cnn_tiny",
        "method": {"name": method},
        "generator": None,
        "seed": seed,
    }
    plain = Result(
        "abc", config, n_train, 10, "d" * 64, "e" * 64, split * 64, top1, 2.5, 0.1, 1.0,
        100, 12.5, 6400, 3200, path=f"runs/{method}-{seed}",
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


TEACHER = {"name": "resnet20", "top1": 0.9, "n_train": 1500, "key": "t"}
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# --- numbers -----------------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_spread(values: list[float]) -> None:
    """Mean and sample standard deviation, as NumPy's."""
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert found.n == len(values)


def test_spread_of_one() -> None:
    """No spread."""
    assert spread([0.3]) == (0.3, 0.0, 1)


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10), st.randoms())
def test_matched_gain(pairs: list[tuple[float, float]], shuffle: object) -> None:
    """Mean and standard error of the differences, in whatever order the runs come."""
    ours = [make_result("kdplus", seed, top1=a) for seed, (a, _) in enumerate(pairs)]
    baseline = [make_result("kd", seed, top1=b) for seed, (_, b) in enumerate(pairs)]
    shuffle.shuffle(ours)  # type: ignore[attr-defined]
    shuffle.shuffle(baseline)  # type: ignore[attr-defined]
    found = matched_gain(ours, baseline)
    assert found is not None
    differences = np.array([a - b for a, b in pairs])
    assert found.mean == pytest.approx(differences.mean(), abs=1e-12)
    error = differences.std(ddof=1) / np.sqrt(len(pairs))
    assert found.error == pytest.approx(error, abs=1e-12)
    assert found.n == len(pairs)


def test_paired_by_seed_split_and_size() -> None:
    """Runs that differ in any of them are no pair."""
    baseline = [make_result(seed=0, top1=0.5), make_result(seed=1, top1=0.1)]
    ours = [
        make_result("kdplus", seed=0, top1=0.6),
        make_result("kdplus", seed=2, top1=0.9),
        make_result("kdplus", seed=1, split="b", top1=0.9),
        make_result("kdplus", seed=1, n_train=100, top1=0.9),
    ]
    found = matched_gain(ours, baseline)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.1), 1)
    assert math.isnan(found.error)
    assert matched_gain(ours[1:], baseline) is None
    assert matched_gain([], baseline) is None


def test_unequal_budgets() -> None:
    """Updates or rows."""
    one = make_result()
    assert not unequal_budgets([one, make_result("kdplus", 1)])
    assert unequal_budgets([one, make_result(steps=101)])
    assert unequal_budgets([one, make_result(student_rows=1)])


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.00 %"), (1.0, "100.00 %")])
def test_percent(value: float | None, text: str) -> None:
    """In percent, or a dash."""
    assert percent(value) == text


# --- tables ------------------------------------------------------------------------------------


@pytest.fixture
def printed() -> Callable[..., str]:
    """What ``show`` prints, with spaces run together."""

    def call(*results: Result, width: int = 200) -> str:
        stream = io.StringIO()
        show_results(results, Console(file=stream, width=width))
        return " ".join(stream.getvalue().split())

    return call


def test_one(printed: Callable[..., str]) -> None:
    """All facts of a run."""
    full = make_result(
        teacher=TEACHER, top5=0.75, val_top1=0.25, agreement=0.8, tv_train=0.1, tv_test=0.2,
        tv_paths=0.3, seconds={"train": 1.5}, top1=0.61234,
    )  # fmt: skip
    text = printed(full)
    for part in (
        "teacher resnet20, top-1 90.00 % (trained on 1500 images)", "cnn_tiny, kd, seed 0",
        "50 digits images (stratified, split aaaaaaaa)", "top-1 61.23 %", "top-5 75.00 %",
        "validation top-1 25.00 %", "2.500 nats, 0.100", "agrees with teacher 80.00 %",
        "0.100 on train, 0.300 between, 0.200 on test",
        "100 updates, 6,400 student rows, 3,200 teacher queries", "train 1.5", "runs/kd-0",
    ):  # fmt: skip
        assert part in text


def test_one_without_optional_facts(printed: Callable[..., str]) -> None:
    """Fields that are None are left out."""
    text = printed(make_result())
    assert "teacher none" in text
    for part in ("top-5", "validation", "agrees", "distance", "None"):
        assert part not in text


@pytest.mark.parametrize("known", [{"agreement": 0.8}, {"agreement": 0.8, "tv_test": 0.2}])
def test_one_with_some_facts(printed: Callable[..., str], known: dict[str, float]) -> None:
    """Agreement is known without the distances, or with one of them."""
    text = printed(make_result(teacher=TEACHER | {"n_train": None}, **known))
    assert "agrees with teacher 80.00 %" in text
    assert "(given)" in text
    assert ("0.200 on test" in text) == ("tv_test" in known)
    assert "None" not in text


def test_many(printed: Callable[..., str]) -> None:
    """A row per method, and the paired difference with its standard error."""
    values = {"kd": (0.5, 0.6, 0.7), "kdplus": (0.6, 0.65, 0.75)}
    results = [
        make_result(method, seed, top1=top1, agreement=0.8, teacher=TEACHER)
        for method, row in values.items()
        for seed, top1 in enumerate(row)
    ]
    text = printed(*results)
    assert "kd 3 60.00 10.00 2.500 0.100 80.00 100 6,400 3,200" in text
    assert "kdplus 3 66.67 7.64" in text
    error = np.std([10, 5, 5], ddof=1) / np.sqrt(3)
    expected = f"kdplus - kd on 50 images: +6.67 +- {error:.2f} points (3 seeds, +- standard error)"
    assert expected in text
    assert "data digits, n 50, student cnn_tiny" in text
    assert text.count("resnet20") == 1
    assert "differ between arms" not in text
    assert "files: runs" in text


def test_of_many_arms_only_differences_from_one(printed: Callable[..., str]) -> None:
    methods = ["ce", "kd", "kdplus", "at", "rkd", "fitnet"]
    text = printed(*map(make_result, methods))
    assert (text.count("paired difference"), "note: differences" in text) == (15, False)
    text = printed(*map(make_result, [*methods, "mixup"]))
    assert text.count("paired difference") == text.count(" - kd on 50 images") == 6
    assert "note: differences from kd only" in text


def test_many_with_missing_facts(printed: Callable[..., str]) -> None:
    """No agreement, no teacher, one seed, unequal budgets."""
    text = printed(make_result(), make_result("kdplus", steps=300), make_result("ce", seed=1))
    assert "(1 seed)" in text
    assert "updates or student rows differ between arms" in text
    assert "None" not in text
    assert "nan" not in text


def test_same_arm_only(printed: Callable[..., str]) -> None:
    """Several seeds of one method: a row, no difference."""
    text = printed(*(make_result(seed=seed, top1=0.1 * seed, steps=seed) for seed in range(4)))
    assert "4 15.00 12.91" in text
    assert "0-3" in text
    assert "paired" not in text


def test_generators_are_named(printed: Callable[..., str]) -> None:
    """Arms of one method that differ in the generator are told apart."""
    plain = make_result()
    mixed = make_result(config=plain.config | {"generator": {"name": "cutmix"}}, top1=0.6)
    text = printed(plain, mixed)
    assert "paired difference kd (cutmix) - kd (-) on 50 images: +10.00 points (1 seed)" in text


def test_names_are_not_markup(printed: Callable[..., str]) -> None:
    """Brackets and colons in a folder's name are printed as they are."""
    place = "/tmp/[bold]x[/red]/:smile:/run"
    assert place in printed(make_result(path=place))
    many = printed(make_result(path=place), make_result("kdplus", path=place))
    assert "files: /tmp/[bold]x[/red]/:smile:" in many


@pytest.mark.parametrize("width", [20, 40, 80])
def test_narrow_terminal(printed: Callable[..., str], width: int) -> None:
    """Whatever the width."""
    assert printed(make_result(), width=width)
    assert printed(make_result(), make_result("kdplus"), width=width)
