"""What every registered sampler must satisfy: permutation, determinism, class counts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.samplers.base import Sampler, samplers
from fskd.errors import DataError, FskdError
from fskd.seeding import numpy_generator
from fskd.types import Pool

NAMES = samplers.names()
READERS = [name for name in NAMES if samplers.get(name).reads]
# Every sampler with its defaults, and with the other ranking where it has both.
WAYS = [(name, None) for name in NAMES] + [
    (name, False) for name in NAMES if "per_class" in samplers.get(name).Settings.model_fields
]
LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80)
SEEDS = st.integers(0, 2**40)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def pool(labels: list[int]) -> Pool:
    """Labels, with embeddings and logits for samplers that look at them."""
    rng, n = torch.Generator().manual_seed(0), len(labels)
    return Pool(
        torch.tensor(labels), torch.randn(n, 6, generator=rng), torch.randn(n, 7, generator=rng)
    )


def build(name: str, per_class: bool | None = None) -> Sampler:
    given = {} if per_class is None else {"per_class": per_class}
    return samplers.get(name)(samplers.get(name).Settings.model_validate(given))


BALANCED = [name for name in NAMES if build(name).balanced]


def order(name: str, labels: list[int], seed: int = 0, per_class: bool | None = None) -> np.ndarray:
    return build(name, per_class).rank(pool(labels), numpy_generator(seed, "split"))


@pytest.mark.parametrize(("name", "per_class"), WAYS)
@quick
@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_permutation(
    name: str, per_class: bool | None, labels: list[int], seed: int, data: st.DataObject
) -> None:
    """Every example once, as int64; so every subset is a prefix and subsets nest.

    Also where examples have the same outputs.
    """
    seen = pool(labels)
    same = sorted(data.draw(st.sets(st.integers(0, len(labels) - 1))))
    for outputs in (seen.embeddings, seen.logits):
        outputs[same] = outputs[0].clone()
    found = build(name, per_class).rank(seen, numpy_generator(seed, "split"))
    assert found.dtype == np.int64
    assert found.shape == (len(labels),)
    assert sorted(found.tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(labels=LABELS, seed=SEEDS)
def test_deterministic(name: str, labels: list[int], seed: int) -> None:
    """The same seed gives the same order, whatever the global generators hold."""
    state = np.random.get_state()  # noqa: NPY002
    first, torch_state = order(name, labels, seed), torch.get_rng_state()
    np.testing.assert_array_equal(first, order(name, labels, seed))
    assert torch.equal(torch_state, torch.get_rng_state())
    for old, new in zip(state, np.random.get_state(), strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_differ(name: str) -> None:
    """Other seeds give other orders."""
    labels = [i % 5 for i in range(100)]
    assert len({order(name, labels, seed).tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize("name", NAMES)
def test_labels_untouched(name: str) -> None:
    """What the sampler looks at is left as it is."""
    seen, fresh = pool([2, 0, 1, 1, 0]), pool([2, 0, 1, 1, 0])
    samplers.get(name)().rank(seen, numpy_generator(0))
    assert torch.equal(seen.targets, fresh.targets)
    assert torch.equal(seen.embeddings, fresh.embeddings)
    assert torch.equal(seen.logits, fresh.logits)


# --- outputs of the teacher --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_reads_what_it_says(name: str) -> None:
    """With what it reads and no more the order is the same."""
    reads, labels = samplers.get(name).reads, [i % 4 for i in range(30)]
    assert reads <= {"embedding", "logits"}
    full = pool(labels)
    needed = Pool(
        full.targets,
        full.embeddings if "embedding" in reads else None,
        full.logits if "logits" in reads else None,
    )
    found = build(name).rank(needed, numpy_generator(0, "split"))
    np.testing.assert_array_equal(found, order(name, labels))


@pytest.mark.parametrize("name", READERS)
def test_missing_outputs(name: str) -> None:
    """One line that names the sampler and what it lacks."""
    with pytest.raises(FskdError, match=f"'{name}' reads the teacher's (embedding|logits)"):
        build(name).rank(Pool(torch.tensor([0, 1])), numpy_generator(0))


@pytest.mark.parametrize("name", READERS)
def test_unusable_outputs(name: str) -> None:
    """Values that are not finite, and shapes that do not fit."""
    targets = torch.tensor([0, 1, 0])
    nan = torch.tensor([[0.0, 1.0], [1.0, torch.nan], [1.0, 2.0]])
    for bad, text in ((nan, "not finite"), (nan[:2], r"\(2, 2\)"), (nan[:, 0], r"\(3,\)")):
        with pytest.raises(DataError, match=text):
            build(name).rank(Pool(targets, bad, bad), numpy_generator(0))


@pytest.mark.parametrize("name", READERS)
def test_precision_of_outputs(name: str) -> None:
    """bfloat16 is read, though NumPy does not know it."""
    full = pool([i % 3 for i in range(20)])
    rounded = Pool(full.targets, full.embeddings.bfloat16(), full.logits.bfloat16())
    same = Pool(full.targets, rounded.embeddings.float(), rounded.logits.float())
    one, two = (build(name).rank(seen, numpy_generator(0)) for seen in (rounded, same))
    np.testing.assert_array_equal(one, two)


# --- processes ---------------------------------------------------------------------------------

PRINT_ORDERS = """
import json
import sys
import torch
from fskd.data.samplers.base import samplers
from fskd.seeding import numpy_generator
from fskd.types import Pool
rng = torch.Generator().manual_seed(0)
n = 2000
# Negligible differences between many examples: what rounding errors would reorder.
embeddings = torch.randn(20, 128, generator=rng)[torch.arange(n) % 20] + 3
embeddings += torch.randn(n, 128, generator=rng) * 1e-6
pool = Pool(torch.arange(n) ** 2 % 7, embeddings, torch.randn(n, 7, generator=rng))
orders = []
for name, per_class in json.loads(sys.argv[1]):
    cls = samplers.get(name)
    given = {} if per_class is None else {"per_class": per_class}
    sampler = cls(cls.Settings.model_validate(given))
    orders.append(sampler.rank(pool, numpy_generator(3, "split")).tolist())
print(json.dumps(orders))
"""


def test_same_in_every_process() -> None:
    """Processes with other thread counts and hash seeds find the same orders."""
    found = []
    for threads, hashing in (("1", "0"), ("2", "12345"), ("3", "7")):
        environment = os.environ | {"PYTHONHASHSEED": hashing}
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        done = subprocess.run(
            [sys.executable, "-c", PRINT_ORDERS, json.dumps(WAYS)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
    for way, *orders in zip(WAYS, *found, strict=True):
        assert orders[0] == orders[1] == orders[2], way


# --- class-balanced samplers -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "per_class"), WAYS)
def test_per_class_is_balance(name: str, per_class: bool | None) -> None:
    """`per_class` decides where there is one; `shots` relies on it."""
    settings_of = samplers.get(name).Settings.model_fields
    if "per_class" in settings_of:
        assert build(name, per_class).balanced is (per_class is None)


@pytest.mark.parametrize("name", BALANCED)
@quick
@given(labels=LABELS, seed=SEEDS)
def test_balanced_at_every_prefix(name: str, labels: list[int], seed: int) -> None:
    """Counts of classes that still have examples differ by at most one, at the top."""
    targets = np.array(labels)
    sizes = np.bincount(targets, minlength=7)
    present = sizes > 0
    found = order(name, labels, seed)
    for k in range(1, len(labels) + 1):
        counts = np.bincount(targets[found[:k]], minlength=7)
        unfinished = counts[present & (counts < sizes)]
        top = counts[present].max()
        assert (top - unfinished <= 1).all()


@pytest.mark.parametrize("name", BALANCED)
@quick
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=SEEDS, data=st.data())
def test_k_shots(name: str, sizes: list[int], seed: int, data: st.DataObject) -> None:
    """The first k*K are k per class up to the smallest class, with labels in any order."""
    labels = data.draw(st.permutations([c for c, size in enumerate(sizes) for _ in range(size)]))
    found, n_classes = order(name, labels, seed), len(sizes)
    targets = np.array(labels)
    for k in range(1, min(sizes) + 1):
        counts = np.bincount(targets[found[: k * n_classes]], minlength=n_classes)
        assert counts.tolist() == [k] * n_classes


# --- stratified --------------------------------------------------------------------------------


def test_single_example_of_a_class() -> None:
    """It comes in the first round, wherever it lies; later rounds belong to the others."""
    for place in (0, 7, 20):
        labels = [i % 2 for i in range(20)]
        labels.insert(place, 2)
        for seed in range(10):
            found = [labels[i] for i in order("stratified", labels, seed)]
            assert sorted(found[:3]) == [0, 1, 2]
            assert all(sorted(found[3 + 2 * r : 5 + 2 * r]) == [0, 1] for r in range(9))


def test_one_class() -> None:
    """K = 1: a plain shuffle."""
    orders = {tuple(order("stratified", [0] * 6, seed).tolist()) for seed in range(20)}
    assert len(orders) > 10


def test_a_class_without_examples() -> None:
    """A gap in the class numbers changes nothing."""
    found = [[0, 5, 0, 5][i] for i in order("stratified", [0, 5, 0, 5])]
    assert sorted(found[:2]) == sorted(found[2:]) == [0, 5]


def test_random_within_and_between_classes() -> None:
    """Every class comes first now and then, and every example of a class."""
    labels = [0, 1, 2] * 4
    first = [int(order("stratified", labels, seed)[0]) for seed in range(300)]
    assert set(first) == set(range(12))


def test_class_order_is_new_in_every_round() -> None:
    """Rounds do not repeat one order of the classes."""
    labels = [i % 5 for i in range(50)]
    found = [labels[i] for i in order("stratified", labels)]
    rounds = {tuple(found[5 * r : 5 * r + 5]) for r in range(10)}
    assert len(rounds) > 5
