import gzip
import struct

import numpy as np
import pytest
import torch

from fskd.data.datasets import fashion_mnist
from fskd.data.datasets.base import Source, load
from fskd.data.datasets.idx import read_idx
from fskd.errors import DataError, SettingError

BOTH = pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])


@BOTH
def test_values_survive(name, write, make_pixels):
    train, test = load(name, write(name))
    assert torch.equal(train.images[:, 0], torch.tensor(make_pixels(20, 28, 28, seed=0)))
    assert torch.equal(test.images[:, 0], torch.tensor(make_pixels(10, 28, 28, seed=1)))
    assert train.targets.tolist() == [*range(10)] * 2


@BOTH
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", [True, False])
def test_layouts_agree(name, packed, below, write, tmp_path):
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    source = write(name, packed=packed)
    expected = load(name, source).train.fingerprint
    if below:
        (tmp_path / folder).mkdir()
        source.root.rename(tmp_path / folder / "raw")
        source = Source(tmp_path)
    assert load(name, source).train.fingerprint == expected


def test_debian_folder_is_found_without_a_root(write, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", write("fashion_mnist").root)
    assert len(load("fashion_mnist").train) == 20


def test_message_lists_what_was_looked_for(tmp_path):
    with pytest.raises(SettingError, match=r"looked for .*MNIST/raw/train-images-idx3-ubyte\.gz"):
        load("mnist", Source(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08\x03\0\0", "not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"abc", "with 3 axes"),
        (struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 1, 1) + b"a", "not an IDX file of bytes"),
        (struct.pack(">BBBB3I", 0, 1, 8, 3, 1, 1, 1) + b"a", "not an IDX file"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 2, 2) + b"abc", "less data"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 1, 1, 2) + b"abc", "more data"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 9), "too large"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_contents(content, message, suffix, tmp_path):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=f"images.*{message}"):
        read_idx(path, 3)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped", "folder", "cut in the checksum"])
def test_damaged_gzip(damage, tmp_path, to_idx, make_pixels):
    path = tmp_path / "images.gz"
    packed = bytearray(gzip.compress(to_idx(make_pixels(4, 9, 9))))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 255
    variants = {"cut": packed[:100], "not gzip": b"hello", "cut in the checksum": packed[:-3]}
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(variants.get(damage, packed))
    with pytest.raises(DataError, match=r"images\.gz cannot be read") as caught:
        read_idx(path, 3)
    assert "\n" not in str(caught.value)


def test_counts_must_agree(write, to_idx):
    source = write("mnist", packed=False)
    (source.root / "train-labels-idx1-ubyte").write_bytes(to_idx(np.zeros(19)))
    with pytest.raises(DataError, match="20 images but 19 labels"):
        load("mnist", source)


def test_labels_must_be_classes(write, to_idx):
    source = write("mnist", packed=False)
    (source.root / "train-labels-idx1-ubyte").write_bytes(to_idx(np.full(20, 10)))
    with pytest.raises(DataError, match=r"mnist, train part: label 10 is outside 0\.\.9"):
        load("mnist", source)


def test_download_only_when_asked_and_needed(write, monkeypatch):
    from torchvision import datasets

    calls = []

    def fake(root, download):
        calls.append((root, download))
        raise OSError("host not found")

    monkeypatch.setattr(datasets, "MNIST", fake)
    source = write("mnist")
    load("mnist", source._replace(download=True))
    empty = Source(source.root / "empty")
    with pytest.raises(SettingError):
        load("mnist", empty)
    assert calls == []
    with pytest.raises(DataError, match=r"MNIST: download into .*empty failed: host not found"):
        load("mnist", empty._replace(download=True))
    assert calls == [(empty.root, True)]


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist is absent")
def test_real_fashion_mnist():
    train, test = load("fashion_mnist")
    assert train.targets.bincount().tolist() == [6000] * 10
    assert test.targets.bincount().tolist() == [1000] * 10
    assert train.size == (1, 28, 28)
    assert train.images.double().mean() / 255 == pytest.approx(train.mean[0], abs=1e-4)
