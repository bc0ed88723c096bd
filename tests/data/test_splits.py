"""From a data set to the examples of one run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.samplers.base import samplers
from fskd.data.splits import order_hash, rank, subset_size, take
from fskd.errors import DataError, SettingError
from fskd.types import ImageSet, Pool, Ranking


def ranking(order: list[int]) -> Ranking:
    return Ranking("toy", "uniform", {}, 0, torch.tensor(order), "f" * 64, "a" * 64)


def images(targets: list[int]) -> ImageSet:
    pixels = torch.zeros(len(targets), 1, 2, 2, dtype=torch.uint8)
    return ImageSet(
        pixels, torch.tensor(targets), ("a", "b", "c"), (0.5,), (0.5,), "f" * 64, (1, 2, 2)
    )


# --- subset_size -------------------------------------------------------------------------------

BALANCED = torch.arange(1000) % 10


@pytest.mark.parametrize(
    ("fraction", "size"),
    [(1.0, 1000), (0.5, 500), (0.25, 250), (0.1, 100), (0.01, 10), (0.0001, 1), (0.3337, 334)],
)
def test_fraction(fraction: float, size: int) -> None:
    """The nearest number of examples, at least one."""
    assert subset_size(BALANCED, 10, fraction=fraction) == size


def test_everything_by_default() -> None:
    """No choice means all examples."""
    assert subset_size(BALANCED, 10) == 1000


@pytest.mark.parametrize("shots", [1, 5, 100])
def test_shots(shots: int) -> None:
    """k per class."""
    assert subset_size(BALANCED, 10, shots=shots) == 10 * shots


def test_too_many_shots() -> None:
    """The smallest class decides."""
    targets = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    assert subset_size(targets, 3, shots=3) == 9
    expected = r"data\.shots: 4 is not accepted; expected at most 3, the size of the smallest class"
    with pytest.raises(SettingError, match=expected):
        subset_size(targets, 3, shots=4)


def test_shots_of_an_absent_class() -> None:
    """A class without examples has no shot."""
    with pytest.raises(SettingError, match="at most 0"):
        subset_size(torch.tensor([0, 0, 1]), 3, shots=1)


def test_number() -> None:
    """As given, up to all."""
    assert subset_size(BALANCED, 10, n=37) == 37
    assert subset_size(BALANCED, 10, n=1000) == 1000
    with pytest.raises(SettingError, match=r"data\.n: 1001 .* at most 1000"):
        subset_size(BALANCED, 10, n=1001)


# --- take --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.permutations(range(30)), st.integers(3, 20), st.integers(0, 10))
def test_take(order: list[int], size: int, n_val: int) -> None:
    """Training is the prefix; validation follows, disjoint and outside the subset."""
    targets = torch.empty(30, dtype=torch.int64)
    targets[torch.tensor(order)] = torch.arange(30) % 3  # every prefix of 3 has all classes
    subset = take(ranking(order), size, n_val, targets, 3)
    assert subset.train.tolist() == order[:size]
    assert subset.val.tolist() == order[size : size + n_val]
    assert len(subset.val) == n_val
    assert not set(subset.train.tolist()) & set(subset.val.tolist())
    assert subset.split_sha256 == "a" * 64


def test_missing_class() -> None:
    """Named, with a way out."""
    targets = torch.tensor([0, 0, 1, 2])
    with pytest.raises(DataError, match=r"none of class 1 \(2 of 3 classes .*stratified"):
        take(ranking([0, 1, 2, 3]), 2, 0, targets, 3)
    assert len(take(ranking([0, 2, 3, 1]), 3, 0, targets, 3).train) == 3


def test_too_few_left_for_validation() -> None:
    """Validation never takes training examples."""
    targets = torch.tensor([0, 1, 2, 0, 1])
    assert take(ranking([0, 1, 2, 3, 4]), 3, 2, targets, 3).val.tolist() == [3, 4]
    with pytest.raises(SettingError, match=r"data\.val: 3 .* at most 2"):
        take(ranking([0, 1, 2, 3, 4]), 3, 3, targets, 3)


# --- hash and rank -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([2, 0, 1], "0db201e8371010e5cd3b719cf6c131cea86e18ef7c5bdd394e23b352b8e54f9e"),
        ([69999, 0, 256, 1], "2c131f1b4208d92f1268307e2622133bbd9c63f73c36ed162146c432f349d4f3"),
    ],
)
def test_order_hash(order: list[int], expected: str) -> None:
    """sha256 of the bytes 02 00 00 00 00 00 00 00 01 00 00 00, and of four larger numbers."""
    assert order_hash(torch.tensor(order)) == expected
    assert order_hash(torch.tensor(order, dtype=torch.int32)) == expected


def test_order_hash_of_a_view() -> None:
    """Strides do not matter."""
    assert order_hash(torch.tensor([2, 9, 0, 9, 1, 9])[::2]) == order_hash(torch.tensor([2, 0, 1]))


@pytest.mark.parametrize("name", samplers.names())
def test_rank(name: str) -> None:
    """The order, its hash, and where both come from; a function of the seed."""
    source, sampler = images([0, 1, 2] * 5), samplers.get(name)()
    draw = torch.Generator().manual_seed(0)
    pool = Pool(
        source.targets, torch.randn(15, 4, generator=draw), torch.randn(15, 3, generator=draw)
    )
    one, two, other = (rank("toy", name, sampler, source, seed, pool) for seed in (1, 1, 2))
    assert torch.equal(one.order, two.order)
    assert one.sha256 == two.sha256 == order_hash(one.order)
    assert one.sha256 != other.sha256
    assert one.order.dtype == torch.int64
    assert sorted(one.order.tolist()) == list(range(15))
    assert (one.dataset, one.sampler, one.seed, one.fingerprint) == ("toy", name, 1, "f" * 64)
    assert one.settings == sampler.settings.model_dump()
