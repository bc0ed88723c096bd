"""Whole runs of every method and composition through the loop, which knows none of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from wanted import ALIKE, JOINED, WANTED

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.methods.base import methods
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.batches import check_processes
from fskd.runs.prepare import prepare
from fskd.runs.runner import run
from fskd.runs.session import Session


def go(out: Path, *layers: dict[str, Any], **runtime: Any) -> Result:
    return run(resolve(*layers), Session(Runtime(out=str(out), **runtime)))


@pytest.mark.parametrize("name", methods.names())
def test_every_method(name: str, out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": name}, WANTED.get(name, {}))
    assert result.steps == sum(result.phases.values()) == 6
    assert 0 < result.top1 < 1
    assert (Path(result.path) / "student.safetensors").exists()
    assert len(result.peers_top1) == (1 if name in ("dml", "codistillation") else 0)


@pytest.mark.parametrize("name", sorted({*JOINED} - {"kdplus"}))
def test_every_method_with_kdplus(name: str, out: Path, tiny: dict[str, Any]) -> None:
    """Generated points are there; those that make labels themselves leave no place for others'."""
    result = go(out, tiny, {"method": f"kdplus+{name}"}, ALIKE, WANTED.get(name, {}))
    assert result.steps == 6
    assert "generated" in result.final_loss


@pytest.mark.parametrize(
    "name", ["kdplus+at", "kd+rkd+fitnet", "kd+sskd", "sskd+crd", "kdplus+fsp", "ce+tfkd_reg"]
)
def test_compositions(name: str, out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": name}, ALIKE if "fsp" in name else {})
    assert result.steps == 6


@pytest.mark.parametrize("generator", ["mixup", "cutmix", "mixpatch"])
@pytest.mark.parametrize("name", ["kd", "kdplus", "at", "rkd", "dml"])
def test_any_generator_with_any_method(
    name: str, generator: str, out: Path, tiny: dict[str, Any]
) -> None:
    result = go(out, tiny, {"method": name, "generator": generator})
    assert result.student_rows == 6 * 64


def test_kdplus_without_generator_is_kd(out: Path, tiny: dict[str, Any]) -> None:
    plain = go(out, tiny, {"method": "kd"})
    off = go(out, tiny, {"method": "kdplus", "generator": "none"})
    ours, theirs = (load_file(Path(r.path) / "student.safetensors") for r in (off, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"share": 1.0},
        {"share": 0.8},
        {"when": "alternate", "real_probability": 0.5},
        {"pairs": "different_class", "lam": "beta", "lam_per": "batch"},
    ],
)
def test_generator_options(settings: dict[str, Any], out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"generator": {"name": "mixup", **settings}})
    assert result.student_rows == 6 * 64


@pytest.mark.parametrize("settings", [{"share": 1.0}, {"when": "alternate"}])
@pytest.mark.parametrize("method", ["kdplus+sskd", "kdplus+crd", "fsp+kdplus"])
def test_phases_without_generated_rows(
    method: str, settings: dict[str, Any], out: Path, tiny: dict[str, Any]
) -> None:
    """A generator that drops real rows leaves the phases alone that read no generated ones."""
    student = ALIKE if "fsp" in method else {}
    generator = {"generator": {"name": "mixup", **settings}}
    assert go(out, tiny, {"method": method}, student, generator).steps == 6


def test_no_student_starts_as_its_teacher(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(tiny, {"method": "kd", "student": "cnn_small"})
    student = prepare(config, tmp_path).students[0].net.state_dict()
    teacher = prepare(config.teacher_run(), tmp_path).students[0].net.state_dict()
    assert not torch.equal(student["fc.weight"], teacher["fc.weight"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"optim": {"batch_size": 63}}, "optim.batch_size"),
        ({"generator": {"name": "mixup", "share": 0.02}}, "real rows"),
        ({"method": "crd"}, "memories"),
    ],
)
def test_what_several_processes_cannot_share(
    change: dict[str, Any], word: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = prepare(resolve(tiny, change), tmp_path)
    check_processes(job, 1)
    with pytest.raises(SettingError, match=word):
        check_processes(job, 2)


def test_scale_epochs_keeps_the_number_of_real_steps(out: Path, tiny: dict[str, Any]) -> None:
    settings = {"when": "alternate", "real_probability": 0.25, "scale_epochs": True}
    assert go(out, tiny, {"generator": {"name": "mixup", **settings}}).steps == 24


def test_every_seed_purpose_is_separate(out: Path, tiny: dict[str, Any]) -> None:
    """The split follows its own seed; the method does not shift the order or the initialisation."""
    first = go(out, tiny, {"method": "ce"})
    split = go(out, tiny, {"method": "ce", "data": {"split_seed": 5}})
    assert first.split_sha256 != split.split_sha256
    assert go(out, tiny, {"method": "kd"}).split_sha256 == first.split_sha256


def test_validation_part(out: Path, tiny: dict[str, Any]) -> None:
    result = go(out, tiny, {"method": "ce", "data": {"val": 50}})
    assert result.val_top1 is not None
    assert go(out, tiny, {"method": "ce"}).val_top1 is None


def test_epochs_are_student_rows(out: Path, tiny: dict[str, Any]) -> None:
    """Arms with equal epochs make equal updates, generated rows or not."""
    arms = [go(out, tiny, {"method": name, "budget": {"epochs": 4}}) for name in ("kd", "kdplus")]
    assert [arm.steps for arm in arms] == [8, 8]  # ceil(4 * 120 / 64)
    assert arms[0].student_rows == arms[1].student_rows


def test_top5_with_more_than_ten_classes(tmp_path: Path, tiny: dict[str, Any]) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    y = np.arange(240) % 12
    x = rng.integers(0, 255, (240, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    data = {"data": {"name": "npz", "root": str(tmp_path / "own.npz"), "fraction": 0.5}}
    result = go(tmp_path / "runs", tiny, data)
    assert result.top5 is not None
    assert result.top5 >= result.top1
    # Other contents at the same place are another run.
    np.savez(tmp_path / "own.npz", x=255 - x, y=y)
    from fskd.runs.images import _load

    _load.cache_clear()
    assert go(tmp_path / "runs", tiny, data).key != result.key


def test_images_on_disk(tmp_path: Path, tiny: dict[str, Any], monkeypatch: Any) -> None:
    """A folder that is too large for memory goes through the workers' loader."""
    import numpy as np
    from PIL import Image

    from fskd.data.datasets import folder

    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for name in ("a", "b"):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 0, raising=True)
    data = {
        "data": {
            "name": "folder", "root": str(tmp_path / "images"), "image_size": 32, "fraction": 1.0,
            "augment": {"crop": 4, "flip": True, "affine": 1.0},
        },
        "optim": {"batch_size": 8},
        "teacher": {"optim": {"batch_size": 8}, "budget": {"steps": 3}},
    }  # fmt: skip
    result = go(tmp_path / "runs", tiny, data, workers=0)
    assert result.n_train == 24


@pytest.mark.parametrize("runtime", [{"channels_last": False}, {"precision": "bf16-mixed"}])
def test_runtime_is_not_in_the_key(
    runtime: dict[str, Any], tmp_path: Path, out: Path, tiny: dict[str, Any]
) -> None:
    small = merge(tiny, {"method": "kd"})
    changed, plain = go(tmp_path, small, **runtime), go(out, small)
    assert changed.key == plain.key
    # A forward pass in bfloat16 rounds by 2^-8 in each of a handful of layers.
    assert abs(changed.nll - plain.nll) < 8 * 2**-8 * plain.nll
