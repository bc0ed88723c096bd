"""Near-duplicates between test and training images, against loops over pairs."""

import numpy as np
import pytest
import torch

from fskd.data.datasets.base import image_set
from fskd.data.dedupe import MAX_PAIRS, descriptors, near_duplicates, summary, to_csv
from fskd.errors import SettingError
from fskd.types import DataSplits


def data(n_train: int = 40, n_test: int = 1030, channels: int = 1) -> DataSplits:
    """Random images; test 0 is train 3, test 1 is train 5 darkened, test 2 is nearly train 7."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 200, (n_train, channels, 6, 6), dtype=np.uint8)
    test = rng.integers(0, 200, (n_test, channels, 6, 6), dtype=np.uint8)
    train[5] *= 2
    test[0], test[1], test[2] = train[3], train[5] // 2, train[7]
    test[2, 0, 0, 0] ^= 3
    names, stats = ("a", "b"), ((0.5,) * channels, (0.5,) * channels)
    return DataSplits(
        image_set(train, np.arange(n_train) % 2, names, *stats),
        image_set(test, np.arange(n_test) % 2, names, *stats),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_against_loops(channels: int) -> None:
    parts = data(channels=channels)
    found = near_duplicates(parts, 0.3)
    grey = [np.asarray(part.images).astype(float).mean(1) for part in parts]
    expected = {}
    for i, a in enumerate(grey[1]):
        for j, b in enumerate(grey[0]):
            distance = 1 - np.corrcoef(a.ravel(), b.ravel())[0, 1]
            if distance <= 0.3:
                expected[i, j] = distance
    pairs = list(zip(found.test.tolist(), found.train.tolist(), strict=True))
    assert set(pairs) == set(expected)
    for pair, distance in zip(pairs, found.distance.tolist(), strict=True):
        assert distance == pytest.approx(expected[pair], abs=1e-5)
    assert found.distance.tolist() == sorted(found.distance.tolist())


def test_what_is_reported() -> None:
    parts = data()
    found = near_duplicates(parts, 1e-4)
    assert {(0, 3), (1, 5)} <= set(zip(found.test.tolist(), found.train.tolist(), strict=True))
    assert found.exact.tolist() == [pair == (0, 3) for pair in zip(found.test.tolist(),
                                    found.train.tolist(), strict=True)]  # fmt: skip
    lines = to_csv(found, parts).splitlines()
    assert lines[0] == "test,train,distance,exact,test_label,train_label"
    assert lines[1] == "0,3,0.000000,1,0,1"
    exact, near = summary(found, parts, 1e-4)
    assert exact.startswith("1 of 1030 test images (0.10 %) have an exact copy")
    assert exact.endswith("(1 pairs), 1 of them with another label")
    assert f"{len(found.test.unique())} of 1030" in near


def test_plain_images_are_near_nothing_but_their_copies() -> None:
    """No correlation is defined for them; copies are found by their pixels."""
    plain = np.full((2, 1, 4, 4), 7, np.uint8)
    other = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    parts = DataSplits(
        *(
            image_set(np.concatenate(both), [0, 0, 1, 1], ("a", "b"), (0.5,), (0.5,))
            for both in ((plain, other), (plain[:1], plain[:1] + 1, other))
        )
    )
    found = near_duplicates(parts, 0.0)
    pairs = set(zip(found.test.tolist(), found.train.tolist(), strict=True))
    assert {(0, 0), (0, 1), (2, 2), (3, 3)} <= pairs
    assert not any(test == 1 for test, _ in pairs)


def test_large_images_are_averaged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 96), dtype=np.uint8)
    images = image_set(pixels, [0, 1, 0], ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    found = descriptors(images)
    assert found.shape == (3, 32 * 32)
    block = pixels[0].astype(float).mean(0).reshape(32, 2, 32, 3).mean((1, 3)).ravel()
    block -= block.mean()
    torch.testing.assert_close(
        found[0].double(), torch.from_numpy(block / np.linalg.norm(block)), rtol=0, atol=1e-5
    )


def test_too_many_pairs_stop_early() -> None:
    with pytest.raises(SettingError, match=r"--threshold: 2\.0"):
        near_duplicates(data(2000, MAX_PAIRS // 2000 + 600), 2.0)
