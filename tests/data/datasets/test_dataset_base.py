import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fskd.data.datasets import base
from fskd.data.datasets.base import channel_stats, check_splits, fingerprint, image_set, load
from fskd.data.datasets.files import fetch
from fskd.errors import DataError, SettingError
from fskd.types import DataSplits


@pytest.fixture
def part(make_pixels):
    return image_set(make_pixels(6, 3, 4, 5), [0, 1, 2, 0, 1, 2], "abc", (0.5,) * 3, (0.2,) * 3)


def test_unknown_name_lists_the_nearest():
    with pytest.raises(SettingError, match="'digits' \\(nearest\\)"):
        load("digit")


def test_heavy_packages_are_not_imported_at_start():
    code = (
        "import sys; from fskd.data.datasets.base import datasets; datasets.names();"
        "print([m for m in ('torchvision', 'sklearn', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_fingerprint_covers_every_pixel_and_label(part):
    pixels, labels = part.images.numpy(), part.targets.numpy()
    seen = {part.fingerprint, fingerprint(pixels, labels)}
    assert len(seen) == 1
    for index in np.ndindex(*pixels.shape):
        changed = pixels.copy()
        changed[index] ^= 1
        seen.add(fingerprint(changed, labels))
    for index in range(len(labels)):
        changed = labels.copy()
        changed[index] += 1
        seen.add(fingerprint(pixels, changed))
    assert len(seen) == 1 + pixels.size + labels.size


def test_fingerprint_knows_shape_and_dtype_but_not_layout(make_pixels):
    pixels = make_pixels(2, 3, 4)
    same = np.asfortranarray(pixels)
    assert fingerprint(pixels) == fingerprint(same) == fingerprint(torch.tensor(pixels))
    assert fingerprint(pixels) != fingerprint(pixels.reshape(2, 4, 3))
    assert fingerprint(pixels) != fingerprint(pixels.view(np.int8))
    assert fingerprint(np.array([1, 2], ">i8")) == fingerprint(np.array([1, 2], "<i8"))


def test_fingerprint_value_is_fixed():
    # Stored splits refer to these values, so they may never change.
    value = fingerprint(np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3), np.array([1]))
    assert value == "1c4e08906b794eb72f6910e4409318f14dc509d363055e0a2999debcc6963661"


@pytest.mark.parametrize("chunk", [2, 4096])
def test_channel_stats_match_numpy(make_pixels, monkeypatch, chunk):
    monkeypatch.setattr(base, "CHUNK", chunk)
    pixels = make_pixels(5, 3, 4, 6)
    mean, std = channel_stats(pixels)
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)


def test_constant_channel_keeps_normalised_pixels_finite():
    assert channel_stats(np.full((2, 1, 3, 3), 255, np.uint8)) == ((1.0,), (1.0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "6 images but 2 labels"),
        ({"targets": torch.tensor([0, 1, 2, 0, 1, 3])}, r"label 3 is outside 0\.\.2"),
        ({"targets": torch.tensor([0, 1, 2, 0, 1, -1])}, r"label -1 is outside 0\.\.2"),
        ({"targets": torch.zeros(6)}, "not int64"),
        ({"images": torch.zeros(6, 3, 4, 5)}, "not uint8"),
        ({"images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8)}, "no images"),
        ({"images": [1] * 6}, "neither a tensor nor LazyImages"),
        ({"size": (3, 5, 4)}, r"images are \(3, 4, 5\), not \(3, 5, 4\)"),
        ({"mean": (0.5,)}, "3 values, one per channel"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive"),
    ],
)
def test_unsound_part_is_named(part, changes, message):
    with pytest.raises(DataError, match=f"^toy, test part: .*{message}"):
        check_splits(DataSplits(part, replace(part, **changes)), "toy")


def test_parts_must_fit_together(part, make_pixels):
    check_splits(DataSplits(part, part), "toy")
    with pytest.raises(DataError, match="different classes"):
        check_splits(DataSplits(part, replace(part, classes=("a", "b", "d"))), "toy")
    small = image_set(make_pixels(2, 3, 4, 4), [0, 1], "abc", part.mean, part.std)
    with pytest.raises(DataError, match=r"\(3, 4, 5\) and test images \(3, 4, 4\)"):
        check_splits(DataSplits(part, small), "toy")


def test_failed_download_is_one_silent_line(tmp_path, capsys):
    def download(root):
        print("progress")
        print("progress", file=sys.stderr)
        raise RuntimeError("no\nnetwork")

    with pytest.raises(DataError, match=r"^toy: download into .* failed: no network$"):
        fetch("toy", base.Source(tmp_path / "new"), download)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SettingError, match=r"data\.root: None .* a folder to download toy into"):
        fetch("toy", base.Source(), download)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingError, match=f"data.root: {tmp_path}/absent"):
        load("mnist", base.Source("~/absent"))
