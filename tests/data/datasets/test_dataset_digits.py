from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fskd.data.datasets import digits
from fskd.data.datasets.base import channel_stats, load
from fskd.errors import DataError


def test_sizes_and_class_balance():
    train, test = load("digits")
    assert (len(train), len(test)) == (1198, 599)
    assert train.size == (1, 8, 8)
    totals = train.targets.bincount() + test.targets.bincount()
    assert totals.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (train.targets.bincount() - totals * 2 / 3).abs().max() < 1


def test_no_level_is_lost_and_parts_are_disjoint():
    raw = load_digits()
    splits = load("digits")
    levels = torch.cat([part.images for part in splits]).div(15).reshape(-1, 64).numpy()
    assert sorted(levels.tolist()) == sorted(raw.data.tolist())


def test_statistics_are_of_the_training_images():
    train, test = load("digits")
    assert (train.mean, train.std) == channel_stats(train.images) == (test.mean, test.std)
    np.testing.assert_allclose(train.mean, train.images.double().mean() / 255)


def test_split_is_fixed():
    # Results of different runs are comparable only while this stays.
    train, test = load("digits")
    assert train.fingerprint.startswith("9e3d500869")
    assert test.targets[:10].tolist() == [2, 3, 7, 0, 8, 4, 8, 4, 6, 5]
    assert test.fingerprint.startswith("f52a4b6d1b")


def test_is_what_scikit_learn_gives():
    """Images, labels, parts and their order: the file stands for these four lines."""
    raw = load_digits()
    parts = train_test_split(
        np.arange(len(raw.images)), test_size=1 / 3, stratify=raw.target, random_state=0
    )
    for images, rows in zip(load("digits"), parts, strict=True):
        assert np.array_equal(images.images[:, 0], raw.images[rows] * 15)
        assert np.array_equal(images.targets, raw.target[rows])


@pytest.mark.parametrize("damage", ["changed", "short", "absent"])
def test_damaged_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    data = bytearray(digits.FILE.read_bytes())
    data[1000] ^= 1
    path = tmp_path / "digits.npz"
    if damage != "absent":
        path.write_bytes(data if damage == "changed" else data[:-9])
    monkeypatch.setattr(digits, "FILE", path)
    with pytest.raises(DataError, match=r"digits\.npz: .*install fskd anew$") as caught:
        load("digits")
    assert "\n" not in str(caught.value)
