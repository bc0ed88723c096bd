"""Streams that depend on the seed and the purpose alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.seeding import derive, numpy_generator, torch_generator

PURPOSES = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 9999)), max_size=3)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(-(2**63), 2**63), PURPOSES)
def test_range(seed: int, purpose: list[str | int]) -> None:
    """63 bits, which torch and NumPy both take."""
    found = derive(seed, *purpose)
    assert 0 <= found < 2**63
    assert found == derive(seed, *purpose)
    torch_generator(seed, *purpose)
    numpy_generator(seed, *purpose)


def test_values() -> None:
    """The first 63 bits of sha256("(0, 'order', 3)"): a change would break every stored split."""
    assert derive(0, "order", 3) == 8483304753239185838
    assert derive(7) == 1320494719199842095


def test_different() -> None:
    """Seed, purpose, order of the parts, and text against number all matter."""
    asked = [
        (0,), (1,), (0, "order"), (0, "split"), (0, "order", 0), (0, "order", 1),
        (0, 1, "order"), (0, "1"), (0, 1), (0, 1, 2), (0, 12), (0, "order", "1"), (0, "a", "b"),
        (0, "ab"), (-1,),
    ]  # fmt: skip
    assert len({derive(*parts) for parts in asked}) == len(asked)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_integers_of_other_libraries(kind: type) -> None:
    """A number is a number, whichever library counts."""
    assert derive(kind(3), "order", kind(5)) == derive(3, "order", 5)


def test_generators() -> None:
    """Equal purposes give equal draws, others do not; the global streams stay."""
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    one, two, other = (torch.rand(5, generator=torch_generator(0, "x", i)) for i in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    first, second, third = (numpy_generator(0, "x", i).random(5) for i in (1, 1, 2))
    assert (first == second).all()
    assert not (first == third).any()
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(numpy_state, np.random.get_state(), strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(old, new)
    assert torch_generator(0).device.type == "cpu"


def test_same_in_every_process() -> None:
    """Python's own hash is not used."""
    done = subprocess.run(
        [sys.executable, "-c", "from fskd.seeding import derive; print(derive(3, 'a', 4))"],
        env=os.environ | {"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) == derive(3, "a", 4)
