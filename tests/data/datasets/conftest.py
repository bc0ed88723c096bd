"""Writes small data sets in the exact formats of the real ones."""

import gzip
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fskd.data.datasets.base import Source

SIZES = {"train": 20, "test": 10}


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- IDX -------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(root: Path, packed: bool = True) -> Source:
    root.mkdir(parents=True, exist_ok=True)
    for seed, (prefix, count) in enumerate((("train", 20), ("t10k", 10))):
        arrays = {
            "images-idx3-ubyte": pixels(count, 28, 28, seed=seed),
            "labels-idx1-ubyte": np.arange(count) % 10,
        }
        for stem, array in arrays.items():
            content = idx_bytes(array)
            path = root / f"{prefix}-{stem}"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return Source(root)


# --- CIFAR -----------------------------------------------------------------------------------


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 writes it: byte strings, and arrays through numpy.core."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"T" + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_emit, value)) + b"e"
    if isinstance(value, dict):
        items = b"".join(_emit(key) + _emit(item) for key, item in value.items())
        return b"}(" + items + b"u"
    shape = b"(" + b"".join(map(_emit, value.shape)) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    minus_one = _emit(-1)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _emit(value.tobytes()) + b"tb"


def text_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 3 writes it, keys as text."""
    if isinstance(value, dict):
        value = {key.decode(): item for key, item in value.items()}
    return pickle.dumps(value, protocol=2)


def bytes_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 3 writes it, keys as bytes."""
    return pickle.dumps(value, protocol=2)


class CifarFiles:
    """The parts of a small CIFAR set, and how each version names and lays them out."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        ten = n_classes == 10
        stem = "cifar-10" if ten else "cifar-100"
        self.python_folder = "cifar-10-batches-py" if ten else "cifar-100-python"
        self.binary_folder = "cifar-10-batches-bin" if ten else "cifar-100-binary"
        self.archive = f"{stem}-python.tar.gz"
        self.train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
        self.test = "test_batch" if ten else "test"
        self.meta = "batches.meta" if ten else "meta"
        self.binary_names = "batches.meta.txt" if ten else "fine_label_names.txt"
        self.prefix = b"" if ten else b"fine_"
        self.names = [f"class{i}" for i in range(n_classes)]

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return pixels(4, 3072, seed=index), (np.arange(4) * 3 + index) % self.n_classes

    def python(self, dump: Callable[[Any], bytes] = python2_pickle) -> dict[str, bytes]:
        names = [name.encode() for name in self.names]
        files = {self.meta: dump({self.prefix + b"label_names": names})}
        for index, name in enumerate([*self.train, self.test]):
            data, labels = self.batch(index)
            batch: dict[bytes, Any] = {b"batch_label": b"part", b"data": data}
            batch[self.prefix + b"labels"] = labels.tolist()
            if self.n_classes == 100:
                batch[b"coarse_labels"] = [0] * len(labels)
            files[name] = dump(batch)
        return files

    def binary(self) -> dict[str, bytes]:
        files = {self.binary_names: "\n".join(self.names).encode() + b"\n\n"}
        for index, name in enumerate([*self.train, self.test]):
            data, labels = self.batch(index)
            columns = [labels[:, None].astype(np.uint8), data]
            if self.n_classes == 100:
                columns.insert(0, np.zeros((len(labels), 1), np.uint8))
            files[f"{name}.bin"] = np.hstack(columns).tobytes()
        return files

    def write(self, folder: Path, files: dict[str, bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def pack(self, root: Path, files: dict[str, bytes]) -> Path:
        self.write(root / "unpacked", files)
        with tarfile.open(root / self.archive, "w:gz") as tar:
            tar.add(root / "unpacked", self.python_folder)
        return root / self.archive


@pytest.fixture(params=[10, 100])
def cifar(request: pytest.FixtureRequest) -> CifarFiles:
    return CifarFiles(request.param)


# --- Other readers ---------------------------------------------------------------------------


def write_cifar(root: Path, n_classes: int) -> Source:
    files = CifarFiles(n_classes)
    files.write(root / files.python_folder, files.python())
    return Source(root)


def write_svhn(root: Path) -> Source:
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for part, count in SIZES.items():
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        content = {"X": pixels(32, 32, 3, count), "y": labels}
        savemat(root / f"{part}_32x32.mat", content, do_compression=True)
    return Source(root)


def save_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_tiny_imagenet(root: Path) -> Source:
    folder = root / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    lines = []
    for seed, wnid in enumerate(wnids):
        for number in range(2):
            array = pixels(64, 64, 3, seed=10 * seed + number)
            # Some of the real images are grey.
            array = array[..., 0] if number else array
            save_image(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", array)
        save_image(folder / "val" / "images" / f"val_{seed}.JPEG", pixels(64, 64, 3, seed=seed))
        lines.append(f"val_{seed}.JPEG\t{wnid}\t0\t0\t10\t10\n")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tlemon\nn99\tother\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return Source(root)


def write_folder(root: Path, test: str = "test") -> Source:
    for seed, part in enumerate(("train", test)):
        for label, name in enumerate(("dog", "cat")):
            for number in range(3):
                array = pixels(20 + number, 30, 3, seed=100 * seed + 10 * label + number)
                save_image(root / part / name / f"{number}.png", array)
    return Source(root, image_size=16)


def write_npz(root: Path) -> Source:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "images.npz"
    np.savez(path, x=pixels(40, 8, 8, 3), y=np.arange(40) % 4)
    return Source(path)


WRITERS: dict[str, Callable[[Path], Source]] = {
    "cifar10": lambda root: write_cifar(root, 10),
    "cifar100": lambda root: write_cifar(root, 100),
    "digits": lambda root: Source(),
    "fashion_mnist": write_idx,
    "folder": write_folder,
    "mnist": write_idx,
    "npz": write_npz,
    "svhn": write_svhn,
    "tiny_imagenet": write_tiny_imagenet,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Source]:
    """``write(name, **options)`` writes a small data set and returns where it is."""

    def call(name: str, **options: Any) -> Source:
        return WRITERS[name](tmp_path / "data", **options)

    return call


@pytest.fixture
def make_pixels() -> Callable[..., np.ndarray]:
    return pixels


@pytest.fixture
def to_idx() -> Callable[[np.ndarray], bytes]:
    return idx_bytes


@pytest.fixture(params=[python2_pickle, text_pickle, bytes_pickle])
def dump(request: pytest.FixtureRequest) -> Callable[[Any], bytes]:
    return request.param


@pytest.fixture
def python2() -> Callable[[Any], bytes]:
    return python2_pickle


@pytest.fixture
def put_image() -> Callable[[Path, np.ndarray], None]:
    return save_image
