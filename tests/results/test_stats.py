"""Statistics of a few seeds, against loops, scipy and published examples."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.isotonic import IsotonicRegression

from fskd.results.aggregate import interquartile_mean, probability_of_improvement
from fskd.results.scaling import Examples, equivalence, examples_needed, isotonic, log_area
from fskd.results.stats import MAX_EXACT, holm, interval, paired, sign_flip, summarise

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
shares = st.floats(0, 1, width=16)
VALUES = [0.61, 0.64, 0.60, 0.66, 0.63]


# --- mean and interval -------------------------------------------------------------------------


@quick
@given(st.lists(shares, min_size=2, max_size=12, unique=True))
def test_t_interval(values: list[float]) -> None:
    """As scipy's one-sample t-test gives it; mean and std as NumPy's."""
    s = summarise(values)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (s.low, s.high) == pytest.approx((expected.low, expected.high))
    assert (s.mean, s.std, s.n) == (
        pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), len(values),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["t", "bca", "percentile"])
def test_level_and_place(how: str) -> None:
    """A higher level is wider; the interval holds the mean and moves with the values."""
    low, high, done = interval(VALUES, how)  # type: ignore[arg-type]
    wide = interval(VALUES, how, level=0.99)  # type: ignore[arg-type]
    moved = interval(np.array(VALUES) + 0.1, how)  # type: ignore[arg-type]
    assert done == how
    assert wide.low < low < np.mean(VALUES) < high < wide.high
    # Resamples with equal means are ties that rounding breaks anew.
    assert moved[:2] == pytest.approx((low + 0.1, high + 0.1), abs=0.003)


def test_percentile_against_all_resamples() -> None:
    """With three values all 27 resamples can be listed."""
    values = [0.2, 0.5, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]
    found = interval(values, "percentile", level=0.8, resamples=50_000)
    expected = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    assert found[:2] == pytest.approx(expected, abs=1e-9)


def test_bca_is_skewed() -> None:
    """Its interval leans to the long tail, unlike that of t."""
    values = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.5]
    low, high, how = interval(values, "bca")
    assert how == "bca"
    assert high - np.mean(values) > np.mean(values) - low


@pytest.mark.parametrize("how", ["t", "bca", "percentile"])
def test_one_value_and_equal_values(how: str) -> None:
    """No interval, and one without width; both are said."""
    one = summarise([0.5], how)  # type: ignore[arg-type]
    assert (one.mean, one.n, one.how) == (0.5, 1, "one value")
    assert all(map(math.isnan, (one.std, one.low, one.high)))
    equal = summarise([0.5, 0.5], how)  # type: ignore[arg-type]
    assert equal == (0.5, 0.0, 2, 0.5, 0.5, "equal values")


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [[0.1]], [math.inf]])
def test_bad_values(values: list[float]) -> None:
    """Refused rather than averaged."""
    for call in (summarise, sign_flip):
        with pytest.raises(ValueError, match="finite values"):
            call(values)


def test_seeds() -> None:
    """The same seed gives the same interval; another, another; the global stream is untouched."""
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    values = np.random.default_rng(5).normal(size=9)
    for how in ("bca", "percentile"):
        first = interval(values, how, seed=1)  # type: ignore[arg-type]
        assert first == interval(values, how, seed=np.random.default_rng(1))  # type: ignore[arg-type]
        assert first != interval(values, how, seed=2)  # type: ignore[arg-type]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


# --- paired differences ------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(shares, shares), min_size=2, max_size=9))
def test_sign_flip_against_scipy(pairs: list[tuple[float, float]]) -> None:
    """All patterns, as ``scipy.stats.permutation_test`` enumerates them."""
    a, b = np.array(pairs).T
    found = sign_flip(a - b)
    expected = scipy_stats.permutation_test(
        (a, b), lambda x, y, axis: np.abs(np.mean(x - y, axis=axis)), vectorized=True,
        permutation_type="samples", n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    assert found.p == pytest.approx(expected.pvalue)
    assert found.how == "exact"
    assert found.smallest == 2 / 2 ** len(pairs) <= found.p


@quick
@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=8))
def test_sign_flip_by_loop(differences: list[float]) -> None:
    """Every pattern written out."""
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(math.fsum(differences))
    hits = sum(
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-12
        for signs in patterns
    )
    assert sign_flip(differences).p == pytest.approx(hits / len(patterns))


def test_rounding_is_a_tie() -> None:
    """0.1 + 0.2 - 0.3 and -0.1 - 0.2 + 0.3 are not told apart by their last bits."""
    assert sign_flip([0.1, 0.2, -0.3]).p == 1.0
    for n in range(2, 13):  # summed in another order, these miss their own sum
        assert sign_flip([0.1] * n).p == 2 / 2**n


def test_darwin() -> None:
    """Darwin's 15 pairs of maize (Fisher 1935, section 21): 863 of 32,768 one-sided, so 2 x that.

    Fisher counts 863 patterns that are at least as far on the positive side.
    """
    eighths = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sum(eighths) == 314
    assert sign_flip(eighths).p * 2**15 == 2 * 863


def test_many_pairs() -> None:
    """Beyond the exact size patterns are drawn, which is said and agrees with the normal limit."""
    d = np.random.default_rng(0).normal(0.3, 1, size=MAX_EXACT + 10)
    found = sign_flip(d, seed=3)
    z = d.sum() / np.sqrt(np.square(d).sum())
    assert found.how == "100000 random patterns"
    assert found.smallest == 1 / 100_001
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(z), abs=0.01)
    assert found == sign_flip(d, seed=3) != sign_flip(d, seed=4)
    assert sign_flip(np.ones(40), patterns=20_001).p == 1 / 20_002


def test_paired() -> None:
    """Mean, error and interval are those of the paired t-test."""
    a, b = np.array(VALUES), np.array([0.55, 0.60, 0.61, 0.58, 0.60])
    found = paired(a, b)
    expected = scipy_stats.ttest_rel(a, b)
    assert found.mean / found.error == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.p, found.smallest_p, found.n) == (2 * 2 / 32, 2 / 32, 5)
    with pytest.raises(ValueError, match="5 values cannot be paired with 4"):
        paired(a, b[:4])


def test_one_pair() -> None:
    """A difference without error or interval, and a p-value that says nothing."""
    found = paired([0.6], [0.5])
    assert (found.mean, found.n, found.p) == (pytest.approx(0.1), 1, 1.0)
    assert math.isnan(found.error)
    assert math.isnan(found.low)


@quick
@given(st.lists(shares, min_size=1, max_size=8))
def test_holm(p_values: list[float]) -> None:
    """Rejects at every level what Holm's procedure, step by step, rejects."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3, 0.9):
        rejected: set[int] = set()
        for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[i] * (len(p_values) - step) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_without_some() -> None:
    """NaN is no comparison; nothing exceeds 1."""
    assert holm([]) == []
    found = holm([0.04, math.nan, 0.01])
    assert found[0] == pytest.approx(0.04)
    assert found[2] == pytest.approx(0.02)
    assert math.isnan(found[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


# --- curves ------------------------------------------------------------------------------------


def test_log_area() -> None:
    """A fine sum over log n; a constant; a straight line."""
    sizes, accuracy = [13, 60, 299, 1198], [0.3, 0.7, 0.65, 0.9]
    grid = np.linspace(np.log(13), np.log(1198), 200_001)
    fine = np.interp(grid, np.log(sizes), accuracy).mean()
    assert log_area(sizes, accuracy) == pytest.approx(fine, abs=1e-5)
    assert log_area(sizes, [0.4] * 4) == pytest.approx(0.4)
    assert log_area([1, 10, 1000], [0, 1 / 3, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("sizes", [[10], [10, 10], [20, 10], [0, 10], [[1, 2]]])
def test_bad_sizes(sizes: list[int]) -> None:
    """No range, or none on a logarithmic axis."""
    with pytest.raises(ValueError, match="sizes"):
        log_area(sizes, [0.5] * len(sizes))


def test_wrong_number_of_values() -> None:
    """A value for each size."""
    with pytest.raises(ValueError, match="2 sizes"):
        log_area([1, 2], [0.5])
    with pytest.raises(ValueError, match="do not fit"):
        equivalence([1, 2], [[0.5, 0.6]], [0.5, 0.6])
    with pytest.raises(ValueError, match="do not fit"):
        equivalence([1, 2], np.zeros((0, 2)), [])


@quick
@given(st.lists(st.lists(shares, min_size=5, max_size=5), min_size=1, max_size=4))
def test_isotonic(rows: list[list[float]]) -> None:
    """As scikit-learn's pool-adjacent-violators."""
    found = isotonic(np.array(rows))
    for row, fitted in zip(rows, found, strict=True):
        assert fitted == pytest.approx(IsotonicRegression().fit_transform(range(5), row))


@pytest.mark.parametrize(
    ("target", "text"),
    [(0.3, "10"), (0.299, "< 10"), (0.5, "32"), (0.7, "100"), (0.9, "1000"), (0.901, "> 1000")],
)
def test_examples_needed(target: float, text: str) -> None:
    """Linear in log n; nothing is said outside the sizes."""
    assert str(examples_needed([10, 100, 1000], [0.3, 0.7, 0.9], target)) == text


def test_dips_and_plateaus() -> None:
    """A dip is pooled with what is before it; of a plateau the first size counts."""
    assert str(examples_needed([1, 10, 100, 1000], [0.2, 0.6, 0.4, 0.8], 0.5)) == "10"
    assert str(examples_needed([1, 10, 100], [0.2, 0.5, 0.5], 0.5)) == "10"
    assert examples_needed([7], [0.5], 0.5) == Examples(7.0, "")


@quick
@given(st.floats(1, 1000))
def test_inverse(n: float) -> None:
    """Examples needed for what the curve itself reaches at n are n."""
    sizes, accuracy = [1, 30, 200, 1000], [0.1, 0.5, 0.8, 0.85]
    reached = np.interp(np.log(n), np.log(sizes), accuracy)
    assert examples_needed(sizes, accuracy, reached).value == pytest.approx(n)


def slow_equivalence(
    sizes: list[int], curves: np.ndarray, ours: np.ndarray, drawn: np.ndarray
) -> list[float]:
    found = []
    for chosen in drawn:
        fitted = IsotonicRegression().fit_transform(range(len(sizes)), curves[chosen].mean(0))
        target = ours[chosen].mean()
        if target < fitted[0] - 1e-9 or target > fitted[-1] + 1e-9:
            found.append(math.copysign(math.inf, target - fitted[0]))
            continue
        i = max(int(np.searchsorted(fitted, target - 1e-12)), 1)
        share = (target - fitted[i - 1]) / (fitted[i] - fitted[i - 1])
        found.append(sizes[i - 1] * (sizes[i] / sizes[i - 1]) ** share)
    return sorted(found)


def test_equivalence_by_loop() -> None:
    """Mean and interval against one seed after the other, with scikit-learn's regression."""
    rng = np.random.default_rng(2)
    sizes = [10, 40, 160, 640]
    curves = np.array([0.2, 0.4, 0.42, 0.7]) + rng.normal(0, 0.05, size=(5, 4))
    ours = 0.5 + rng.normal(0, 0.05, size=5)
    found = equivalence(sizes, curves, ours, resamples=400, seed=9)
    drawn = np.random.default_rng(9).integers(5, size=(400, 5))
    slow = slow_equivalence(sizes, curves, ours, drawn)
    assert found.low is not None
    assert found.high is not None
    assert found.needed.value == pytest.approx(
        slow_equivalence(sizes, curves, ours, np.arange(5)[None])[0]
    )
    assert (found.low.value, found.high.value) == pytest.approx((slow[9], slow[-10]))
    assert found.low.value < found.needed.value < found.high.value


def test_equivalence_at_the_edge() -> None:
    """A bound that leaves the sizes is marked; one seed has no interval."""
    curves = np.array([[0.2, 0.5], [0.2, 0.7]])
    found = equivalence([10, 100], curves, np.array([0.55, 0.6]))
    assert found.needed.mark == ""
    assert found.high == Examples(100.0, ">")
    assert equivalence([10, 100], curves[:1], np.array([0.4]))[1:] == (None, None, 1)
    below = equivalence([10, 100], curves, np.array([0.1, 0.1]))
    assert below[:3] == (Examples(10.0, "<"),) * 3


# --- over tasks --------------------------------------------------------------------------------


def test_interquartile_mean() -> None:
    """As scipy's trimmed mean, which rliable uses."""
    rng = np.random.default_rng(0)
    for runs, tasks in ((5, 4), (3, 7), (1, 3), (10, 1)):
        scores = rng.random((tasks, runs))
        expected = scipy_stats.trim_mean(scores, 0.25, axis=None)
        assert interquartile_mean(list(scores)).value == pytest.approx(expected)


def test_probability_of_improvement() -> None:
    """As the Mann-Whitney statistic of each task, which rliable uses, and by counting."""
    rng = np.random.default_rng(1)
    a = [rng.integers(0, 5, n) for n in (5, 3, 4)]
    b = [rng.integers(0, 5, n) for n in (5, 4, 2)]
    shares = [
        scipy_stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        for x, y in zip(a, b, strict=True)
    ]
    assert probability_of_improvement(a, b).value == pytest.approx(np.mean(shares))
    counted = [np.mean([(x > y) + (x == y) / 2 for x in a[0] for y in b[0]])]
    assert probability_of_improvement(a[:1], b[:1]).value == pytest.approx(counted[0])
    assert probability_of_improvement(a, a).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    "statistic",
    [interquartile_mean, lambda tasks, **kw: probability_of_improvement(tasks, tasks[::-1], **kw)],
)
def test_stratified(statistic: Callable) -> None:
    """Runs are drawn within tasks: tasks without spread leave none, however far they are apart."""
    flat = statistic([[0.1, 0.1], [0.9, 0.9]], resamples=50)
    assert flat.low == pytest.approx(flat.value) == flat.high
    tasks = [np.random.default_rng(i).random(4) for i in range(3)]
    found = statistic(tasks, seed=4)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert found == statistic(tasks, seed=4)
    single = statistic([[0.1], [0.9]])
    assert math.isnan(single.low)


def test_iqm_interval_by_loop() -> None:
    """The same draws, one resample after the other."""
    tasks = [np.array([0.1, 0.4, 0.5]), np.array([0.6, 0.2, 0.9, 0.7])]
    found = interquartile_mean(tasks, resamples=200, seed=6)
    rng = np.random.default_rng(6)
    picks = [rng.integers(len(t), size=(200, len(t))) for t in tasks]
    means = []
    for i in range(200):
        runs = sorted([t[j] for t, pick in zip(tasks, picks, strict=True) for j in pick[i]])
        means.append(np.mean(runs[1:-1]))  # 7 // 4 = 1 at either end
    assert found[1:] == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_bad_tasks() -> None:
    """None, or empty ones, or not the same number."""
    for tasks in ([], [[]], [[0.1], []]):
        with pytest.raises(ValueError, match="one or more"):
            interquartile_mean(tasks)
    with pytest.raises(ValueError, match="cannot be compared"):
        probability_of_improvement([[0.1]], [[0.1], [0.2]])
