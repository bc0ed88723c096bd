"""What every registered data set must hold to."""

import re

import pytest
import torch

from fskd.data.datasets.base import Source, datasets, load
from fskd.errors import SettingError

NAMES = datasets.names()


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_sound(name, write):
    splits = load(name, write(name))
    for part in splits:
        assert part.images.dtype == torch.uint8
        assert tuple(part.images.shape) == (len(part), *part.size)
        assert part.images.is_contiguous()
        assert part.targets.dtype == torch.int64
        assert part.targets.shape == (len(part),)
        assert 0 <= part.targets.min() <= part.targets.max() < part.num_classes
        assert all(isinstance(label, str) for label in part.classes)
        assert len(part.mean) == len(part.std) == part.size[0]
        pairs = zip(part.mean, part.std, strict=True)
        assert all(0 <= mean <= 1 and 0 < std <= 1 for mean, std in pairs)
        assert re.fullmatch("[0-9a-f]{64}", part.fingerprint)
    assert splits.train.classes == splits.test.classes
    assert splits.train.fingerprint != splits.test.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_reading_twice_gives_the_same(name, write):
    source = write(name)
    for first, second in zip(load(name, source), load(name, source), strict=True):
        assert first.fingerprint == second.fingerprint
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"digits", "fashion_mnist"}))
@pytest.mark.parametrize("exists", [False, True])
def test_missing_files_are_one_clear_line(name, exists, tmp_path):
    for source in (Source(), Source(tmp_path if exists else tmp_path / "nowhere")):
        with pytest.raises(SettingError, match=r"^data\.root: .*; expected") as caught:
            load(name, source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_registration_carries_defaults(name):
    reader = datasets.get(name)
    assert isinstance(reader.defaults, dict)
    assert reader.__doc__


@pytest.mark.parametrize("name", sorted({*NAMES} - {"folder"}))
def test_image_size_is_refused_where_it_means_nothing(name):
    with pytest.raises(SettingError, match=r"data\.image_size: 48 .* fixed size"):
        load(name, Source(image_size=48))
