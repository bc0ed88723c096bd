import re

import numpy as np
import pytest
import torch
from PIL import Image

from fskd.data.datasets import folder
from fskd.data.datasets.base import Source, load
from fskd.data.datasets.decode import centre_square, open_rgb, to_rgb
from fskd.errors import DataError, SettingError
from fskd.types import LazyImages


def test_order_labels_and_size(write):
    train, test = load("folder", write("folder"))
    assert train.classes == ("cat", "dog")
    assert train.targets.tolist() == test.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.size == (3, 16, 16)


def test_val_serves_as_test(write):
    assert len(load("folder", write("folder", test="val")).test) == 6


def test_default_size(write):
    source = write("folder")._replace(image_size=None)
    assert load("folder", source).train.size == (3, 32, 32)


@pytest.mark.parametrize("size", [0, 7, 1025, -1])
def test_size_is_bounded(size, write):
    with pytest.raises(SettingError, match=rf"data\.image_size: {size} "):
        load("folder", write("folder")._replace(image_size=size))


def test_centre_square_keeps_the_centre(make_pixels):
    wide = make_pixels(16, 40, 3)
    assert np.array_equal(centre_square(Image.fromarray(wide), 16), wide[:, 12:28])
    assert np.array_equal(
        centre_square(Image.fromarray(wide.transpose(1, 0, 2)), 16), wide.transpose(1, 0, 2)[12:28]
    )
    # The slow way: scale the shorter side, then crop; only the border may differ.
    tall = Image.fromarray(np.linspace(0, 255, 64 * 32).reshape(64, 32).astype(np.uint8))
    slow = tall.resize((16, 32), Image.Resampling.BILINEAR).crop((0, 8, 16, 24))
    fast = np.asarray(centre_square(tall, 16), dtype=int)
    assert np.abs(fast - np.asarray(slow, dtype=int)).max() <= 3


def test_every_kind_of_image_becomes_rgb(tmp_path, make_pixels):
    rgb = Image.fromarray(make_pixels(12, 12, 3))
    for mode in ("1", "L", "LA", "P", "RGBA"):
        rgb.convert(mode).save(tmp_path / "image.png")
        assert open_rgb(tmp_path / "image.png").mode == "RGB"
    palette = rgb.convert("P")
    palette.save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert open_rgb(tmp_path / "image.png").mode == "RGB"
    deep = (np.arange(144).reshape(12, 12) * 400).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "image.png")
    expected = np.rint(deep / 257)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "image.png"))[..., 0], expected)
    rgb.convert("CMYK").save(tmp_path / "image.jpg")
    assert open_rgb(tmp_path / "image.jpg").mode == "RGB"
    with pytest.raises(ValueError, match=r"pixels outside 0\.\.1"):
        to_rgb(Image.fromarray(np.full((4, 4), 1.5, np.float32)))


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_image_is_named(damage, write):
    source = write("folder")
    path = source.root / "test/cat/1.png"
    contents = {"cut": path.read_bytes()[:300], "text": b"hello", "empty": b""}
    path.write_bytes(contents[damage])
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be decoded")) as caught:
        load("folder", source)
    assert "\n" not in str(caught.value)


def test_parts_must_have_the_same_classes(write, put_image, make_pixels):
    source = write("folder")
    put_image(source.root / "test/bird/0.png", make_pixels(9, 9))
    with pytest.raises(DataError, match=r"train lacks 1 class\(es\) of the other part: bird$"):
        load("folder", source)
    for name in "abcdefg":
        put_image(source.root / f"train/{name}/0.png", make_pixels(9, 9))
    put_image(source.root / "train/bird/0.png", make_pixels(9, 9))
    with pytest.raises(DataError, match=r"test lacks 7 class.*: a, b, c, d, e, \.\.\.$"):
        load("folder", source)


def test_empty_class_and_no_class(write, tmp_path):
    source = write("folder")
    for part in ("train", "test"):
        (source.root / part / "ant").mkdir()
    with pytest.raises(DataError, match=r"train/ant has no images \(\.apng"):
        load("folder", source)
    for part in ("train", "test"):
        (tmp_path / "bare" / part).mkdir(parents=True)
    with pytest.raises(DataError, match="train has no class folders"):
        load("folder", Source(tmp_path / "bare"))


def test_files_of_other_kinds_are_passed_over(write):
    source = write("folder")
    before = load("folder", source).train.fingerprint
    (source.root / "train/cat/notes.txt").write_text("hello")
    (source.root / "train/cat/.hidden.png").write_text("hello")
    (source.root / "train/.cache").mkdir()
    assert load("folder", source).train.fingerprint == before


def test_large_sets_stay_on_disk(write, monkeypatch):
    source = write("folder")
    in_memory = load("folder", source)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 12 * 3 * 16 * 16 - 1)
    train, test = load("folder", source)
    assert isinstance(train.images, LazyImages)
    assert len(train.images) == len(test.images) == 6
    for lazy, held in zip((train, test), in_memory, strict=True):
        pixels = np.stack([np.asarray(lazy.images.load(i)) for i in range(6)])
        assert np.array_equal(pixels.transpose(0, 3, 1, 2), held.images)
    assert torch.equal(train.targets, in_memory.train.targets)
    assert train.size == (3, 16, 16)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 12 * 3 * 16 * 16)
    assert isinstance(load("folder", source).train.images, torch.Tensor)


def test_fingerprint_of_files_on_disk(write, monkeypatch, tmp_path):
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
    source = write("folder")
    seen = [load("folder", source).train.fingerprint]
    source.root.rename(tmp_path / "moved")
    source = source._replace(root=tmp_path / "moved")
    assert load("folder", source).train.fingerprint == seen[0]
    path = source.root / "train/cat/0.png"
    path.write_bytes(path.read_bytes() + b"\0")
    seen.append(load("folder", source).train.fingerprint)
    path.rename(path.with_name("9.png"))
    seen.append(load("folder", source).train.fingerprint)
    for part in ("train", "test"):
        (source.root / part / "cat").rename(source.root / part / "eel")
    seen.append(load("folder", source).train.fingerprint)
    assert len(set(seen)) == 4
    lazy = load("folder", source).train
    (source.root / "train/dog/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/0\.png cannot be decoded"):
        lazy.images.load(0)
    with pytest.raises(DataError, match=r"dog/0\.png cannot be decoded"):
        load("folder", source)
