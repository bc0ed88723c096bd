"""What every registered sampler must satisfy, and the class counts of ``stratified``."""

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
from fskd.seeding import numpy_generator
from fskd.types import Pool

NAMES = samplers.names()
LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80)
SEEDS = st.integers(0, 2**40)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def pool(labels: list[int]) -> Pool:
    """Labels, with embeddings and logits for samplers that look at them."""
    rng, n = torch.Generator().manual_seed(0), len(labels)
    return Pool(
        torch.tensor(labels), torch.randn(n, 6, generator=rng), torch.randn(n, 7, generator=rng)
    )


def order(name: str, labels: list[int], seed: int = 0) -> np.ndarray:
    sampler: Sampler = samplers.get(name)()
    return sampler.rank(pool(labels), numpy_generator(seed, "split"))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(labels=LABELS, seed=SEEDS)
def test_permutation(name: str, labels: list[int], seed: int) -> None:
    """Every example once, as int64; so every subset is a prefix and subsets nest."""
    found = order(name, labels, seed)
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
    seen = pool([2, 0, 1, 1, 0])
    samplers.get(name)().rank(seen, numpy_generator(0))
    assert seen.targets.tolist() == [2, 0, 1, 1, 0]


PRINT_ORDERS = """
import json
import torch
from fskd.data.samplers.base import samplers
from fskd.seeding import numpy_generator
from fskd.types import Pool
rng = torch.Generator().manual_seed(0)
n = 60
pool = Pool(torch.arange(n) ** 2 % 7, torch.randn(n, 6, generator=rng),
            torch.randn(n, 7, generator=rng))
print(json.dumps({name: samplers.get(name)().rank(pool, numpy_generator(3, "split")).tolist()
                  for name in samplers.names()}))
"""


def test_same_in_every_process() -> None:
    """Processes with other thread counts and hash seeds find the same orders."""
    here = {name: order(name, [i**2 % 7 for i in range(60)], 3).tolist() for name in NAMES}
    for threads, hashing in (("1", "0"), ("3", "12345")):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": hashing}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_ORDERS],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout) == here


# --- stratified --------------------------------------------------------------------------------


@quick
@given(labels=LABELS, seed=SEEDS)
def test_balanced_at_every_prefix(labels: list[int], seed: int) -> None:
    """Counts of classes that still have examples differ by at most one, at the top."""
    targets = np.array(labels)
    sizes = np.bincount(targets, minlength=7)
    present = sizes > 0
    found = order("stratified", labels, seed)
    for k in range(1, len(labels) + 1):
        counts = np.bincount(targets[found[:k]], minlength=7)
        unfinished = counts[present & (counts < sizes)]
        top = counts[present].max()
        assert (top - unfinished <= 1).all()


@quick
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=SEEDS, data=st.data())
def test_k_shots(sizes: list[int], seed: int, data: st.DataObject) -> None:
    """The first k*K are k per class up to the smallest class, with labels in any order."""
    labels = data.draw(st.permutations([c for c, size in enumerate(sizes) for _ in range(size)]))
    found, n_classes = order("stratified", labels, seed), len(sizes)
    targets = np.array(labels)
    for k in range(1, min(sizes) + 1):
        counts = np.bincount(targets[found[: k * n_classes]], minlength=n_classes)
        assert counts.tolist() == [k] * n_classes


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
