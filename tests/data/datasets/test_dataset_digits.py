import numpy as np
import torch
from sklearn.datasets import load_digits

from fskd.data.datasets.base import channel_stats, load


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
