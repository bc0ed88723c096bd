import numpy as np
import pytest
import torch
from scipy.io import savemat

from fskd.data.datasets.base import Source, load
from fskd.errors import DataError, SettingError


def test_values_survive_and_ten_means_zero(write, make_pixels):
    train, test = load("svhn", write("svhn"))
    assert torch.equal(train.images, torch.tensor(make_pixels(32, 32, 3, 20)).permute(3, 2, 0, 1))
    assert train.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert len(test) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, "lacks the variable 'y'"),
        ({"y": np.ones((4, 1))}, "lacks the variable 'X'"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))}, "float64"),
        ({"X": np.zeros((4, 32, 32, 3), np.uint8), "y": np.ones((4, 1))}, "not uint8"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1))}, "4 images but 3 labels"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [0]]}, "from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [11]]}, "from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1.5], [2]]}, "from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": "a"}, "from 1 to 10"),
    ],
)
def test_wrong_contents(content, message, write):
    source = write("svhn")
    savemat(source.root / "train_32x32.mat", content)
    with pytest.raises(DataError, match=f"train_32x32.mat.*{message}"):
        load("svhn", source)


def test_cut_files(write):
    source = write("svhn")
    path = source.root / "test_32x32.mat"
    whole = path.read_bytes()
    for length in (0, 50, 200, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"test_32x32\.mat") as caught:
            load("svhn", source)
        assert "\n" not in str(caught.value)


def test_both_files_are_needed(write):
    source = write("svhn")
    (source.root / "test_32x32.mat").unlink()
    with pytest.raises(SettingError, match=r"looked for .*test_32x32\.mat"):
        load("svhn", source)


def test_download_fetches_both_files(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    fetched = []
    monkeypatch.setattr(utils, "download_url", lambda *args: fetched.append(args[2]))
    with pytest.raises(SettingError):
        load("svhn", Source(tmp_path, download=True))
    assert fetched == ["train_32x32.mat", "test_32x32.mat"]
