"""kdregion is a preset: KD+ with other points, each part of which can be set otherwise."""

import pytest

from fskd.errors import SettingError
from fskd.resolve import resolve


def test_defaults() -> None:
    config = resolve({"method": "kdregion"})
    assert config.generator is not None
    generator = config.generator.model_dump()
    assert (generator["name"], generator["share"]) == ("cutmix", 1.0)
    assert config.data.augment.affine == 1.0
    assert config.teacher is not None


def test_a_layer_wins() -> None:
    config = resolve(
        {"method": "kdregion", "data": {"augment": {"flip": True}}},
        {"data": {"augment": {"affine": 0.0}}, "generator": {"share": 0.25}},
    )
    assert config.generator is not None
    generator = config.generator.model_dump()
    assert (generator["name"], generator["share"]) == ("cutmix", 0.25)
    assert (config.data.augment.affine, config.data.augment.flip) == (0.0, True)
    other = resolve({"method": "kdregion", "generator": "mixup"})
    assert other.generator is not None
    assert other.generator.name == "mixup"
    assert resolve({"method": "kdregion", "generator": "none"}).generator is None


def test_other_methods_are_left_alone() -> None:
    for method in ("kd", "kdplus", "ce"):
        assert not resolve({"method": method}).data.augment.active
    assert resolve({"method": "kdregion+at"}).data.augment.affine == 1.0


def test_the_teacher_is_that_of_kdplus() -> None:
    ours, theirs = (
        resolve({"method": name}).teacher_run().key() for name in ("kdregion", "kdplus")
    )
    assert ours == theirs


def test_a_misspelt_method_is_refused() -> None:
    with pytest.raises(SettingError, match="kdregion"):
        resolve({"method": "kdregoin"})
