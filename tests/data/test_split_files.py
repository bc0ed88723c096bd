"""Split files: equal bytes for equal contents, and no changed byte is ever accepted."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd.data.datasets.base import image_set, load
from fskd.data.manifest import (
    NAME,
    check_order,
    load_split,
    read_listed,
    read_manifest,
    save_split,
    shipped,
    split_names,
)
from fskd.data.split_check import verify
from fskd.data.split_files import MAX_BYTES, check_data, decode, encode, file_name, read, write
from fskd.data.splits import order_hash
from fskd.errors import DataError
from fskd.types import Ranking

quick = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def ranking(order: list[int] | None = None, **changes: Any) -> Ranking:
    ranks = torch.tensor(order or [3, 1, 4, 0, 2])
    made = Ranking("digits", "uniform", {"a": 1}, 7, ranks, "f" * 64, order_hash(ranks))
    return replace(made, **changes)


WHOLE = encode(ranking(teacher={"name": "net", "key": "k"}))


def sealed(body: bytes) -> bytes:
    """A body with the hash that belongs to it, as a forger would write it."""
    return body + hashlib.sha256(body).hexdigest().encode()


def archive(members: dict[str, Any]) -> bytes:
    """A sealed archive of any arrays."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name, array in members.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(array))
            zipped.writestr(name, part.getvalue(), zipfile.ZIP_DEFLATED)
        zipped.comment = b"0" * 64
    return sealed(stream.getvalue()[:-64])


def about(**changes: Any) -> np.ndarray:
    text = str(np.load(io.BytesIO(WHOLE))["about"])
    return np.array(json.dumps(json.loads(text) | changes))


# --- contents ----------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    made = ranking(teacher={"name": "net", "key": "k"})
    write(tmp_path / "x.npz", made)
    found = read(tmp_path / "x.npz")
    assert torch.equal(found.order, made.order)
    assert found.order.dtype == torch.int64
    assert replace(found, order=made.order) == replace(made, source="x.npz")


def test_numpy_opens_it() -> None:
    """Other programs need nothing of ours."""
    with np.load(io.BytesIO(WHOLE), allow_pickle=False) as file:
        assert file["order"].tolist() == [3, 1, 4, 0, 2]
        assert file["order"].dtype == np.uint32
        assert json.loads(str(file["about"]))["seed"] == 7


def test_equal_contents_are_equal_bytes() -> None:
    assert encode(ranking()) == encode(ranking(source="elsewhere"))
    others = [
        ranking(seed=8), ranking(dataset="mnist"), ranking(sampler="stratified"),
        ranking(settings={}), ranking(fingerprint="e" * 64), ranking([0, 1, 2, 3, 4]),
        ranking(teacher={"name": "net", "key": "k"}),
    ]  # fmt: skip
    assert len({encode(other) for other in [ranking(), *others]}) == 8


def test_names() -> None:
    """Settings other than the defaults have a name of their own, whatever their order."""
    name = file_name("d", "s", {"a": 2, "b": 1}, {"a": 1, "b": 1}, 0)
    assert name == file_name("d", "s", {"b": 1, "a": 2}, {"a": 1, "b": 1}, 0)
    assert name != file_name("d", "s", {"a": 3, "b": 1}, {"a": 1, "b": 1}, 0)
    assert file_name("d", "s", {"a": 1}, {"a": 1}, 0) == "d/s-seed0.npz"


# --- damage ------------------------------------------------------------------------------------


@quick
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(place: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    with pytest.raises(DataError, match=r"^x\.npz: damaged"):
        decode(bytes(damaged), "x.npz")


@quick
@given(st.integers(0, len(WHOLE) - 65), st.integers(1, 255))
def test_a_forged_file_is_refused_or_sound(place: int, change: int) -> None:
    """Behind the hash, every other check still holds: one line, or a permutation."""
    damaged = bytearray(WHOLE[:-64])
    damaged[place] ^= change
    with suppress(DataError):
        found = decode(sealed(bytes(damaged)), "x.npz")
        assert sorted(found.order.tolist()) == list(range(len(found.order)))


@quick
@given(st.integers(0, len(WHOLE) - 1))
def test_no_truncated_file_is_accepted(size: int) -> None:
    with pytest.raises(DataError, match=r"^x\.npz: damaged"):
        decode(WHOLE[:size], "x.npz")


ORDER = np.array([1, 0, 2], dtype=np.uint32)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"order.npy": ORDER}, "does not hold"),
        ({"order.npy": ORDER, "about.npy": about(), "more.npy": ORDER}, "does not hold"),
        ({"order.npy": ORDER.astype(np.int64), "about.npy": about()}, "not uint32"),
        ({"order.npy": ORDER[None], "about.npy": about()}, "not uint32"),
        ({"order.npy": ORDER[:0], "about.npy": about()}, "not uint32"),
        ({"order.npy": ORDER + 1, "about.npy": about()}, "index 3 is outside 0..2"),
        ({"order.npy": ORDER * 0, "about.npy": about()}, "index 0 occurs 3 times"),
        ({"order.npy": np.array([{}], object), "about.npy": about()}, "pickle"),
        ({"order.npy": ORDER, "about.npy": ORDER}, "no text"),
        ({"order.npy": ORDER, "about.npy": np.array("{")}, "not JSON"),
        ({"order.npy": ORDER, "about.npy": np.array("[" * 99999)}, "not JSON"),
        ({"order.npy": ORDER, "about.npy": np.array("[1]")}, "format None"),
        ({"order.npy": ORDER, "about.npy": about(format=2)}, "format 2"),
        ({"order.npy": ORDER, "about.npy": about(seed=-1)}, "does not say"),
        ({"order.npy": ORDER, "about.npy": about(seed=True)}, "does not say"),
        ({"order.npy": ORDER, "about.npy": about(fingerprint="x")}, "does not say"),
        ({"order.npy": ORDER, "about.npy": about(teacher="net")}, "does not say"),
        ({"order.npy": ORDER, "about.npy": about(dataset=None)}, "does not say"),
    ],
)
def test_wrong_contents(members: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError, match=word) as caught:
        decode(archive(members), "x.npz")
    assert "\n" not in str(caught.value)


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    zeros = np.zeros(1 << 26, np.uint32)
    data = archive({"order.npy": zeros, "about.npy": about()})
    assert len(data) < 1_000_000
    with pytest.raises(DataError, match="unpacked"):
        decode(data, "x.npz")
    with (tmp_path / "long.npz").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger than"):
        read(tmp_path / "long.npz")


# --- which data --------------------------------------------------------------------------------


def test_one_pixel_or_label_is_another_fingerprint() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(6) % 2
    names = ("a", "b")
    known = image_set(pixels, labels, names, (0.5,), (0.5,)).fingerprint
    for place in range(6 * 16):
        other = pixels.copy()
        other.reshape(-1)[place] ^= 1
        assert image_set(other, labels, names, (0.5,), (0.5,)).fingerprint != known
    for place in range(6):
        changed = labels.copy()
        changed[place] = 1 - changed[place]
        assert image_set(pixels, changed, names, (0.5,), (0.5,)).fingerprint != known


def test_other_data() -> None:
    check_data(ranking(), "f" * 64, 5)
    with pytest.raises(DataError, match=f"{'f' * 64}, but the data here have {'e' * 64}; do x"):
        check_data(ranking(), "e" * 64, 5, "; do x")
    with pytest.raises(DataError, match="orders 5 examples of 6"):
        check_data(ranking(), "f" * 64, 6)


# --- manifest ----------------------------------------------------------------------------------


def test_manifest_knows_every_byte(tmp_path: Path) -> None:
    name = "digits/x-seed0.npz"
    assert load_split(tmp_path, name) is None
    assert save_split(tmp_path, name, ranking(), "make it", False)
    assert not save_split(tmp_path, name, ranking(), "make it", False)
    entry = read_manifest(tmp_path)[name]
    data = (tmp_path / name).read_bytes()
    assert entry.bytes == len(data)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.order_sha256 == ranking().sha256
    assert (entry.fingerprint, entry.command) == ("f" * 64, "make it")
    # A sound file of another order, or of other data, in its place.
    for other in (ranking([0, 1, 2, 3, 4]), ranking(fingerprint="e" * 64)):
        write(tmp_path / name, other)
        with pytest.raises(DataError, match=NAME):
            load_split(tmp_path, name)
        with pytest.raises(DataError, match=NAME):
            read_listed(tmp_path / name)
        with pytest.raises(DataError, match="--force"):
            save_split(tmp_path, name, ranking(), "make it", False)
    save_split(tmp_path, name, ranking([0, 1, 2, 3, 4]), "again", True)
    found = load_split(tmp_path, name)
    assert found is not None
    assert found.order.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"the order here has sha256 .* lists"):
        check_order(ranking(), tmp_path, name)
    check_order(ranking(fingerprint="e" * 64), tmp_path, name)  # of other data: nothing is known


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": []}',
     '{"format": 1, "files": {"a": {}}}', '{"format": 1, "files": {"a": 3}}', "[" * 99999,
     '{"format": 1, "files": {"a": {"bytes": "1", "sha256": "", "order_sha256": "",'
     ' "fingerprint": "", "command": ""}}}'],
)  # fmt: skip
def test_damaged_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(DataError, match="not a manifest") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    assert "cannot" not in verify(shipped(), "digits/stratified-seed0.npz").problem
    good = load_split(shipped(), "digits/stratified-seed0.npz")
    assert good is not None
    name = "digits/stratified-seed1.npz"
    write(tmp_path / name, replace(good, seed=1))  # the order of seed 0
    assert "seed 1 of stratified gives" in verify(tmp_path, name).problem
    write(tmp_path / name, replace(good, settings={"x": 1}))
    assert "settings" in verify(tmp_path, name).problem
    write(tmp_path / name, replace(good, sampler="nosuch"))
    assert "nosuch" in verify(tmp_path, name).problem
    write(tmp_path / name, replace(good, fingerprint="0" * 64))
    assert "fingerprint" in verify(tmp_path, name).problem
    write(tmp_path / name, replace(good, dataset="cifar10"))
    checked = verify(tmp_path, name, tmp_path)
    assert checked.problem == ""
    assert "data not at hand" in checked.unchecked
    save_split(tmp_path, name, good, "", True)
    (tmp_path / name).unlink()
    assert "not there" in verify(tmp_path, name).problem


# --- the committed files -----------------------------------------------------------------------

COMMITTED = list(split_names(shipped()))


def test_ten_orders_of_each_data_set() -> None:
    for dataset in ("digits", "fashion_mnist"):
        for seed in range(10):
            assert f"{dataset}/stratified-seed{seed}.npz" in COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_files(name: str) -> None:
    """Listed, sound, of the data here if they are here, and written by this very code."""
    assert name in read_manifest(shipped())
    checked = verify(shipped(), name)
    assert checked.problem == ""
    if name.startswith("digits/stratified"):
        assert checked.unchecked == ""
    path = shipped() / name
    assert encode(read(path)) == path.read_bytes()


def test_same_order_in_another_process() -> None:
    code = (
        "from fskd.data.datasets.base import load\n"
        "from fskd.data.samplers.stratified import Stratified\n"
        "from fskd.data.splits import rank\n"
        "images = load('digits').train\n"
        "for seed in range(3):\n"
        "    print(rank('digits', 'stratified', Stratified(), images, seed).sha256)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = read_manifest(shipped())
    expected = [listed[f"digits/stratified-seed{seed}.npz"].order_sha256 for seed in range(3)]
    assert done.stdout.split() == expected


def test_the_data_they_belong_to() -> None:
    known = load_split(shipped(), "digits/stratified-seed0.npz")
    assert known is not None
    assert known.fingerprint == load("digits").train.fingerprint
