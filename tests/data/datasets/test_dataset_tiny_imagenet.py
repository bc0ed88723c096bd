import numpy as np
import pytest
import torch
from PIL import Image

from fskd.data.datasets.base import load
from fskd.errors import DataError


@pytest.fixture
def source(write):
    """The root is the folder itself; the contract test covers the one above it."""
    above = write("tiny_imagenet")
    return above._replace(root=above.root / "tiny-imagenet-200")


def test_classes_labels_and_pixels(source):
    train, test = load("tiny_imagenet", source)
    assert train.classes == ("goldfish, Carassius auratus", "lemon", "n03")
    assert train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.targets.tolist() == [2, 0, 1]
    decoded = np.asarray(Image.open(source.root / "train/n01/images/n01_0.JPEG"))
    assert torch.equal(train.images[0], torch.tensor(decoded).permute(2, 0, 1))
    grey = train.images[1]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_damaged_image_is_named(source):
    path = source.root / "train/n02/images/n02_1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"n02_1\.JPEG cannot be decoded"):
        load("tiny_imagenet", source)


def test_other_size_is_named(source, put_image, make_pixels):
    put_image(source.root / "val/images/val_1.JPEG", make_pixels(64, 32, 3))
    with pytest.raises(DataError, match=r"val_1\.JPEG is 32x64, not 64x64"):
        load("tiny_imagenet", source)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("wnids.txt", "", "must list classes"),
        ("wnids.txt", "n01\nn01\n", "each of them once"),
        ("wnids.txt", "n01\nn04\n", "n04/images has no images"),
        ("val/val_annotations.txt", "val_0.JPEG\tn77\t0\n", "line 1: 'n77' is not a class"),
        ("val/val_annotations.txt", "val_0.JPEG n01\n", "line 1: '' is not a class"),
        ("val/val_annotations.txt", "val_9.JPEG\tn01\n", r"val_9\.JPEG cannot be decoded"),
        ("val/val_annotations.txt", "", "test part: there are no images"),
        ("words.txt", None, r"words\.txt cannot be read"),
        ("val/val_annotations.txt", None, r"val_annotations\.txt cannot be read"),
    ],
)
def test_wrong_lists(file, content, message, source):
    if content is None:
        (source.root / file).unlink()
    else:
        (source.root / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load("tiny_imagenet", source)
