from dataclasses import replace
from time import process_time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fskd.data import health
from fskd.data.datasets.base import image_set, load
from fskd.data.health import doubts
from fskd.types import DataSplits, ImageSet


def part(images, labels=None, n_classes=2):
    labels = np.arange(len(images)) % n_classes if labels is None else labels
    classes = [f"c{number}" for number in range(n_classes)]
    return image_set(images, labels, classes, (0.0,) * images.shape[1], (1.0,) * images.shape[1])


@pytest.fixture
def noise():
    """``noise(n)`` gives n images, others on each call, of 3 x 7 x 5 pixels."""
    rng = np.random.default_rng(0)
    return lambda n: rng.integers(0, 256, (n, 3, 7, 5), dtype=np.uint8)


def test_sound_data_are_silent(noise):
    assert doubts(load("digits")) == []
    assert doubts(DataSplits(part(noise(300)), part(noise(100)))) == []
    subset = torch.arange(20)
    assert doubts(DataSplits(part(noise(300)), part(noise(100))), subset) == []


def test_one_class(noise):
    data = DataSplits(part(noise(30), n_classes=1), part(noise(10), n_classes=1))
    assert doubts(data) == ["the data have one class, 'c0': every answer is right"]


def test_equal_images(noise):
    same = noise(1).repeat(300, 0)
    labels = np.arange(300) % 2
    first, *others = doubts(DataSplits(part(same, labels), part(noise(100))))
    assert first == "all 300 training images are equal"
    assert others == ["300 of 300 training images are also there under another label"]
    labels[:] = 0
    train = part(np.concatenate([same[:150], noise(150)]), [0] * 150 + [1] * 150)
    assert doubts(DataSplits(train, part(noise(100)))) == [
        "150 of 300 training images are the same picture"
    ]


@pytest.mark.parametrize(
    ("copies", "n", "doubted"), [(10, 90, True), (10, 100, False), (9, 20, False)]
)
def test_some_copies_are_no_doubt(copies, n, doubted, noise):
    train = np.concatenate([noise(1).repeat(copies, 0), noise(n - copies)])
    data = DataSplits(part(train, [0] * copies + [1] * (n - copies)), part(noise(10)))
    assert bool(doubts(data)) is doubted


def test_plain_images(noise):
    plain = np.arange(60, dtype=np.uint8).repeat(3 * 35).reshape(60, 3, 7, 5)
    plain[:, 1] += 7
    assert doubts(DataSplits(part(plain), part(noise(10)))) == [
        "all 60 training images are plain, of one colour each"
    ]
    plain[-1, 2, 3, 3] += 1
    assert doubts(DataSplits(part(plain), part(noise(10)))) == []


def test_classes_without_images(noise):
    labels = [0, 1, 2, 4] * 5
    train, test = part(noise(20), labels, 5), part(noise(20), [1, 2] * 10, 5)
    assert doubts(DataSplits(train, test)) == [
        "class 'c3' has no training image",
        "3 of 5 classes have no test image, such as 'c0'",
    ]
    assert doubts(DataSplits(train, train), torch.arange(3))[0] == (
        "2 of 5 classes have no sampled training image, such as 'c3'"
    )


def test_test_images_that_are_trained_on(noise):
    train = noise(300)
    for n, doubted in ((37, True), (2, True), (1, False)):
        test = np.concatenate([noise(100 - n), train[:n]])
        expected = f"{n} of 100 test images are also training images (exact copies)"
        for subset in (None, torch.arange(200, 300)):
            found = doubts(DataSplits(part(train), part(test)), subset)
            assert found == ([expected] if doubted else [])
    test = np.concatenate([noise(298), train[:2]])
    assert doubts(DataSplits(part(train), part(test))) == []


def test_one_picture_under_two_labels(noise):
    images = noise(100)
    for n, doubted in ((0, False), (1, True), (4, True)):
        train = np.concatenate([images, images[:n]])
        labels = [0, 1] * 50
        train = part(train, [*labels, *(1 - label for label in labels[:n])])
        expected = f"{2 * n} of {100 + n} training images are also there under another label"
        assert doubts(DataSplits(train, part(noise(10)))) == ([expected] if doubted else [])
    train = part(np.concatenate([images, images[:4]]), [*labels, *labels[:4]])
    assert doubts(DataSplits(train, part(noise(10)))) == []


def test_only_the_sample_is_looked_at_for_equal_images(noise):
    train = part(
        np.concatenate([noise(1).repeat(20, 0), noise(280)]), [0, *[0] * 19, *[1, 0] * 140]
    )
    data = DataSplits(train, part(noise(10)))
    assert doubts(data) == []
    assert doubts(data, torch.tensor([*range(20), 20])) == [
        "20 of 21 sampled training images are the same picture"
    ]
    assert doubts(data, torch.tensor([0, 5, 20])) == []


def test_pictures_that_differ_in_one_pixel_are_others():
    """Also where the checksums are equal, as for images of fewer than 8 pixels."""
    for shape in ((1, 2, 2), (1, 3, 3), (3, 40, 40)):
        images = np.zeros((256, *shape), np.uint8)
        images[:, -1, -1, -1] = np.arange(256)
        rows = health._rows(part(images))
        (shown,) = health._pictures([rows])
        assert len(np.unique(shown)) == 256


def test_large_sets_are_sampled_evenly(noise, monkeypatch):
    monkeypatch.setattr(health, "MAX_ROWS", 50)
    monkeypatch.setattr(health, "CHUNK", 16)
    images = noise(200)
    images[::2] = images[0]
    data = DataSplits(part(images, [0, 1] * 100), part(noise(60)))
    assert doubts(data) == ["all 50 training images are equal"]
    rows = health._rows(data.train)
    assert rows.positions.tolist() == list(range(0, 200, 4))


class Files:
    """Images that must not be read."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def load(self, index):
        raise AssertionError


class Unnamed(Files):
    def __init__(self, paths):
        self.hidden = paths

    def __len__(self):
        return len(self.hidden)


def lazy(images):
    targets = torch.arange(len(images)) % 2
    return ImageSet(images, targets, ("a", "b"), (0.0,), (1.0,), "", (1, 8, 8))


def test_images_on_disk_are_not_read():
    names = [f"{number}.png" for number in range(40)]
    assert doubts(DataSplits(lazy(Files(names[:20])), lazy(Files(names[20:])))) == []
    assert doubts(DataSplits(lazy(Files(names[:20])), lazy(Files(names[10:30])))) == [
        "10 of 20 test images are also training images (exact copies)"
    ]
    unnamed = DataSplits(lazy(Unnamed(names)), lazy(Unnamed(names)))
    assert doubts(unnamed) == []
    assert doubts(unnamed, torch.arange(4)) == []


def test_is_quick():
    images = np.random.default_rng(0).integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8)
    data = DataSplits(part(images), part(images[:10_000] + 1))
    start = process_time()
    assert doubts(data) == []
    assert process_time() - start < 1


@pytest.mark.parametrize("top", [1, 16])
def test_nearly_black_images(noise, top):
    dark = DataSplits(part(noise(300) % (top + 1)), part(noise(100)))
    assert doubts(dark) == [
        f"all 300 training images are nearly black, at most {top} where white is 255"
    ]
    assert doubts(DataSplits(part(noise(300) % 18), part(noise(100)))) == []


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cat", "cat "), ("caf\u00e9", "cafe\u0301")])
def test_names_of_classes_that_look_alike(noise, names):
    data = DataSplits(*(replace(part(noise(n)), classes=names) for n in (300, 100)))
    (line,) = doubts(data)
    assert line.endswith("differ by case, spaces or encoding alone")
    letters = DataSplits(*(replace(one, classes=("a", "A")) for one in data))
    assert doubts(letters) == []


def test_links_to_one_file_are_one_picture(noise, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        (tmp_path / f"link_{name}.png").symlink_to(tmp_path / f"{name}.png")

    def lazy(prefix):
        paths = [tmp_path / f"{prefix}{name}.png" for name in "ab"]
        return replace(part(noise(2)), images=SimpleNamespace(paths=paths))

    assert doubts(DataSplits(lazy(""), lazy("link_"))) == [
        "2 of 2 test images are also training images (exact copies)"
    ]
