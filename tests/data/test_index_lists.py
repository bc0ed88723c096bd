"""Lists of examples that others chose."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fskd.data.index_lists import complete, read_indices
from fskd.data.samplers.stratified import Stratified
from fskd.errors import DataError
from fskd.seeding import numpy_generator
from fskd.types import Pool

POOL = Pool(torch.arange(30) % 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "7\n2\n11\n"), ("a.lst", "7 2, 11"), ("a.csv", "7,2,11\n"), ("a.csv", "7\n2\n11"),
        ("a.csv", "rank,index\n0,7\n1,2\n2,11\n"), ("a.csv", "idx\r\n7\r\n2\r\n11\r\n"),
        ("a.json", "[7, 2, 11]"), ("a.json", '{"indices": [7, 2, 11], "seed": 0}'),
        ("a.json", '{"distribution": [1.0, 0.5], "label": [7, 2, 11]}'), ("a.txt", "\ufeff7 2 11"),
    ],
)  # fmt: skip
def test_formats(name: str, text: str, tmp_path: Path) -> None:
    """Plain text, tables, our export, and FixMatch's label files."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_indices(tmp_path / name)
    assert found.dtype == np.int64
    assert found.tolist() == [7, 2, 11]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_numpy(dtype: type, tmp_path: Path) -> None:
    """USB keeps its labelled examples so."""
    path = tmp_path / "lb_labels3_1_seed1_idx.npy"
    np.save(path, np.array([7, 2, 11], dtype=dtype))
    assert read_indices(path).tolist() == [7, 2, 11]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", ""), ("a.txt", "1.5"), ("a.txt", "one"), ("a.txt", "9" * 30),
        ("a.txt", "9" * 9999),
        ("a.csv", "rank,place\n0,7\n"), ("a.csv", "1,2\n3,4\n"), ("a.csv", "rank,index\n0\n"),
        ("a.json", "{"), ("a.json", "[true]"), ("a.json", "[1.0]"), ("a.json", '{"a": [1]}'),
        ("a.json", '{"label": 3}'), ("a.json", "[[1, 2]]"), ("a.json", "[" * 99999),
        ("a.npy", "x"), ("a.npy", ""),
    ],
)  # fmt: skip
def test_no_list(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="no list of indices") as caught:
        read_indices(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array", [np.array([0.5]), np.zeros((2, 2), int), np.array([{}], object), np.array(3),
              np.array([2**64 - 1], np.uint64), np.array([True])]
)  # fmt: skip
def test_no_list_in_numpy(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="no list of indices"):
        read_indices(tmp_path / "a.npy")
    with pytest.raises(DataError, match="no list of indices"):
        read_indices(tmp_path / "absent.npy")


def test_complete() -> None:
    """The given ones in their order, then the others in stratified order."""
    order = complete(np.array([4, 29, 0]), POOL, 5, "x")
    assert order[:3].tolist() == [4, 29, 0]
    assert sorted(order.tolist()) == list(range(30))
    plain = Stratified().rank(POOL, numpy_generator(5, "split"))
    assert order[3:].tolist() == [i for i in plain.tolist() if i not in (4, 29, 0)]


@pytest.mark.parametrize(
    ("given", "word"),
    [([3, 30], "index 30 is outside 0..29"), ([-1], "index -1 is outside"), ([3, 1, 3], "twice|2")],
)
def test_does_not_fit(given: list[int], word: str) -> None:
    with pytest.raises(DataError, match=word):
        complete(np.array(given), POOL, 0, "x")
