import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from fskd.data.datasets.base import Source, load
from fskd.data.datasets.safe_pickle import read_pickle
from fskd.errors import DataError


def name_of(cifar):
    return f"cifar{cifar.n_classes}"


@pytest.fixture
def written(cifar, tmp_path):
    """The files of the pickled version in their folder."""
    folder = tmp_path / cifar.python_folder
    cifar.write(folder, cifar.python())
    return folder


def test_python2_files_of_the_tests_are_genuine(cifar, python2):
    batch = pickle.loads(cifar.python(python2)[cifar.test], encoding="bytes")
    assert np.array_equal(batch[b"data"], cifar.batch(len(cifar.train))[0])


def test_values_survive(cifar, dump, tmp_path):
    cifar.write(tmp_path / cifar.python_folder, cifar.python(dump))
    train, test = load(name_of(cifar), Source(tmp_path))
    batches = [cifar.batch(index) for index in range(len(cifar.train))]
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.tensor(images))
    assert train.targets.tolist() == np.concatenate([labels for _, labels in batches]).tolist()
    data, labels = cifar.batch(len(cifar.train))
    assert torch.equal(test.images, torch.tensor(data.reshape(-1, 3, 32, 32)))
    assert test.targets.tolist() == labels.tolist()
    assert list(train.classes) == cifar.names


def test_all_versions_agree(cifar, written, tmp_path):
    binary = tmp_path / "b" / cifar.binary_folder
    cifar.write(binary, cifar.binary())
    nameless = tmp_path / "nameless"
    cifar.write(nameless, {k: v for k, v in cifar.binary().items() if k.endswith(".bin")})
    (tmp_path / "a").mkdir()
    archive = cifar.pack(tmp_path / "a", cifar.python())
    roots = [written, written.parent, binary, binary.parent, nameless, archive, archive.parent]
    splits = [load(name_of(cifar), Source(root)) for root in roots]
    assert len({parts.train.fingerprint for parts in splits}) == 1
    assert len({parts.test.fingerprint for parts in splits}) == 1
    for parts, root in zip(splits, roots, strict=True):
        expected = [str(i) for i in range(cifar.n_classes)] if root == nameless else cifar.names
        assert list(parts.train.classes) == expected


class Attack:
    """Unpickling this by ordinary means would write a file."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        if self.how == "exec":
            return exec, (f"open({self.path!r}, 'w')",)
        if self.how == "numpy":
            return np.save, (self.path, 1)
        return open, (self.path, "w")


@pytest.mark.parametrize("how", ["open", "exec", "numpy"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["value", "label", "whole"])
def test_pickled_code_does_not_run(how, protocol, place, tmp_path):
    victim = tmp_path / "victim.npy"
    attack = Attack(victim, how)
    content = {"value": {"data": attack}, "label": {"labels": [attack]}, "whole": attack}[place]
    with pytest.raises(DataError, match=r"batch cannot be read as a pickle: it asks for"):
        read_pickle(pickle.dumps(content, protocol), "batch")
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n.",
        b"c_codecs\nencode\n(Va\nVrot13\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.os.sys\x93.",
        b"\x80\x02\x82\x01.",
        b"Pname\n.",
        b"\x80\x02]K\x01.",
        b"(lp0\n0",
        b"",
    ],
)
def test_hostile_or_broken_pickles_are_refused(content):
    with pytest.raises(DataError, match="batch"):
        read_pickle(content, "batch")


def test_state_on_a_stand_in_is_harmless():
    content = b"}(cnumpy\nndarray\n}b"
    with pytest.raises(DataError):
        read_pickle(content + b".", "batch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": None}, "lacks an array 'data'"),
        ({b"labels": None}, "lacks an array"),
        ({b"labels": [0, 1, 2]}, "4 images but 3 labels"),
        ({b"labels": [0, 1, 2, b"3"]}, "whole numbers only"),
        ({b"labels": [0, 1, 2, 10]}, r"label 10 is outside 0\.\.9"),
        ({b"labels": [0, 1, 2, -1]}, r"label -1 is outside 0\.\.9"),
        ({b"data": np.zeros((4, 3071), np.uint8)}, r"\(4, 3071\), not \(N, 3072\)"),
        ({b"data": np.zeros(3072, np.uint8)}, "not \\(N, 3072\\)"),
        ({b"data": b"text"}, "lacks an array 'data'"),
    ],
)
def test_wrong_batch_is_named(change, message, tmp_path, python2):
    data = np.zeros((4, 3072), np.uint8)
    batch = {b"data": data, b"labels": [0, 1, 2, 3], **change}
    present = {key: value for key, value in batch.items() if value is not None}
    good = python2({b"data": data, b"labels": [0] * 4})
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(python2(present) if number == 3 else good)
    (tmp_path / "test_batch").write_bytes(good)
    (tmp_path / "batches.meta").write_bytes(python2({b"label_names": [b"a"] * 10}))
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", Source(tmp_path))
    assert "\n" not in str(caught.value)


def test_array_must_be_bytes_of_its_shape(python2):
    whole = python2({b"data": np.zeros((2, 3), np.uint8)})
    shape = b"J" + struct.pack("<i", 3)
    for old, new in ((b"u1", b"O8"), (shape, b"J" + struct.pack("<i", 4))):
        array = read_pickle(whole.replace(old, new), "batch")["data"]
        with pytest.raises(ValueError, match="an array"):
            array.to_uint8()


def test_column_order_is_kept(make_pixels):
    expected = np.asfortranarray(make_pixels(4, 6))
    array = read_pickle(pickle.dumps({"data": expected}, 2), "batch")["data"].to_uint8()
    assert np.array_equal(array, expected)


def test_cut_files(cifar, written):
    path = written / cifar.train[-1]
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"{path.name} cannot be read as a pickle"):
            load(name_of(cifar), Source(written))
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        load(name_of(cifar), Source(written))


def test_cut_binary(cifar, tmp_path):
    cifar.write(tmp_path, cifar.binary())
    path = tmp_path / f"{cifar.train[0]}.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"no multiple of the 307[34] of one image"):
        load(name_of(cifar), Source(tmp_path))


@pytest.mark.parametrize("cifar", [10], indirect=True)
def test_binary_batch_that_lost_images(tmp_path, cifar):
    cifar.write(tmp_path, cifar.binary())
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[: 2 * 3073])
    with pytest.raises(DataError, match=r"batches differ in size, \[2, 4\]"):
        load("cifar10", Source(tmp_path))


def test_wrong_number_of_names(cifar, written, python2):
    key = cifar.prefix + b"label_names"
    (written / cifar.meta).write_bytes(python2({key: [b"a", b"b"]}))
    with pytest.raises(DataError, match=f"2 names, not {cifar.n_classes}"):
        load(name_of(cifar), Source(written))
    (written / cifar.meta).write_bytes(python2({b"other": []}))
    with pytest.raises(DataError, match="lacks a list"):
        load(name_of(cifar), Source(written))


def test_damaged_archives(cifar, tmp_path):
    archive = cifar.pack(tmp_path, cifar.python())
    whole = archive.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-20]):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"tar\.gz (cannot be read|lacks)"):
            load(name_of(cifar), Source(tmp_path))
    incomplete = cifar.python()
    del incomplete[cifar.test]
    for path in (tmp_path / "unpacked").iterdir():
        path.unlink()
    cifar.pack(tmp_path, incomplete)
    with pytest.raises(DataError, match=f"lacks {cifar.test}$"):
        load(name_of(cifar), Source(tmp_path))


def test_links_in_an_archive_are_not_followed(cifar, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / cifar.archive, "w:gz") as tar:
        link = tarfile.TarInfo(f"{cifar.python_folder}/{cifar.test}")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(DataError, match=f"lacks .*{cifar.test}"):
        load(name_of(cifar), Source(tmp_path))


def test_download_fetches_the_archive(cifar, tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def fake(url, root, filename, md5):
        assert url.startswith("http")
        assert url.endswith(filename)
        assert len(md5) == 32
        cifar.pack(root, cifar.python())

    monkeypatch.setattr(utils, "download_url", fake)
    splits = load(name_of(cifar), Source(tmp_path / "new", download=True))
    assert len(splits.train) == 4 * len(cifar.train)
