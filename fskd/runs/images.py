"""The images of a run, normalised as its settings or its teacher's weights say."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fskd.config import RunConfig, TeacherConfig
from fskd.data.datasets.base import Source, datasets, load
from fskd.data.datasets.listing import files_in
from fskd.data.datasets.listing import told as told_files
from fskd.errors import SettingError
from fskd.models.checkpoint import read_about
from fskd.teachers.normalisations import written
from fskd.types import DataSplits, ImageSet

SAME = 1e-3  # means and standard deviations, in [0, 1], differ by less if they are the same


class Told(NamedTuple):
    """What weights that fskd wrote say of the images that they were trained on.

    Attributes:
        mean: Mean of each channel, as in ``ImageSet``.
        std: Standard deviation, likewise.
        size: (C, H, W).
        classes: Names of the classes in order.
        top1: Accuracy on the test images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...]
    classes: tuple[str, ...]
    top1: float | None


def about_images(images: ImageSet, top1: float | None) -> dict[str, str]:
    """What is written beside weights; ``read_told`` reads it."""
    values = {
        "mean": images.mean,
        "std": images.std,
        "size": images.size,
        "classes": images.classes,
        "top1": top1,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def read_told(path: str) -> Told | None:
    """What a file of weights says of images; None if nothing that can be understood."""
    about = read_about(Path(path).expanduser())
    try:
        *values, top1 = (json.loads(about[name]) for name in Told._fields)
        mean, std, size, classes = map(tuple, values)
        return Told(mean, std, size, classes, top1)
    except (KeyError, ValueError, TypeError):
        return None


def _files(config: RunConfig) -> TeacherConfig | None:
    """A run's teacher, or the nearest teacher of it, that comes from files."""
    teacher = config.teacher
    while teacher is not None and teacher.checkpoint is None:
        teacher = teacher.teacher
    return teacher


def told_all(config: RunConfig) -> list[Told]:
    """The same of each member of a run's teacher, or of the nearest that comes from files."""
    teacher = _files(config)
    files = [] if teacher is None else teacher.checkpoints
    return [one for one in map(read_told, files) if one is not None]


def told(config: RunConfig) -> Told | None:
    """The same of the first of them, whose normalisation is that of all.

    Raises:
        SettingError: If several teachers were trained on images normalised otherwise.
    """
    found, teacher = told_all(config), _files(config)
    alike = len({(one.mean, one.std) for one in found}) <= 1
    if teacher is not None and not alike and config.data.mean is None:
        accepted = "teachers trained on images normalised alike, or data.mean and data.std"
        raise SettingError("teacher.checkpoint", f"'{teacher.checkpoint}'", accepted)
    return found[0] if found else None


@lru_cache(maxsize=2)
def _load(name: str, source: Source, stamp: str) -> DataSplits:
    return load(name, source)


def _stamp(root: Path | None) -> str:
    """Changes when a file does: whoever mends data between two runs means the mended ones."""
    if root is None:
        return ""
    digest = hashlib.sha256()
    for path in files_in(root) if root.is_dir() else [root]:
        about = path.stat() if path.exists() else None
        times = about and (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        digest.update(f"{path}\0{times}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def load_data(config: RunConfig) -> DataSplits:
    """The images of a run; the last two sets stay in memory for the next runs."""
    data = config.data
    root = None if data.root is None else Path(data.root).expanduser()
    source = Source(
        root, data.image_size, data.download, data.test_share, data.class_order,
        data.background, data.on_error == "skip", data.cache_gib,
    )  # fmt: skip
    # Published data do not change, and may lie among millions of other files.
    stamp = _stamp(root) if "test_share" in datasets.get(data.name).reads else ""
    return normalised(_load(data.name, source, stamp), config, told(config))


def normalised(data: DataSplits, config: RunConfig, known: Told | None = None) -> DataSplits:
    """Images with the mean and standard deviation of the settings, else of the teacher's weights.

    Raises:
        SettingError: If these are not one number per channel.
    """
    channels = data.train.size[0]
    mean, std = config.data.mean, config.data.std
    if known is not None and known.size[0] == channels and mean is None and std is None:
        mean, std = known.mean, known.std
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            accepted = f"{channels} numbers, one per channel"
            raise SettingError(f"data.{name}", list(values), accepted)
    given = {"mean": mean, "std": std}
    changes = {name: values for name, values in given.items() if values is not None}
    if not changes:
        return data
    return DataSplits(*(replace(part, **changes) for part in data))  # type: ignore[arg-type]


def mismatches(config: RunConfig, data: DataSplits) -> list[str]:
    """What the teacher's weights say of their images that does not hold here, a line each.

    Raises:
        SettingError: If they know the same classes in another order.
    """
    lines = [line for known in told_all(config) for line in _mismatches(known, data.train)]
    return list(dict.fromkeys(lines))


def _mismatches(known: Told, images: ImageSet) -> list[str]:
    ours, theirs = images.classes, known.classes
    if theirs != ours and sorted(theirs) == sorted(ours):
        value = f"weights of the classes {_some(theirs)}"
        accepted = f"the order {_some(ours)}; see data.class_order"
        raise SettingError("teacher.checkpoint", value, accepted)
    lines = []
    if theirs != ours and len(theirs) == len(ours):
        lines.append(
            f"the teacher's weights know the classes {_some(theirs)}, the data {_some(ours)}"
        )
    if known.size != images.size:
        here, there = ("x".join(map(str, size)) for size in (images.size, known.size))
        lines.append(f"the teacher's weights were trained on {there} images, these are {here}")
    if len(known.mean) == len(images.mean) and not _alike(known, images):
        here, there = (f"mean {written(p.mean)} and std {written(p.std)}" for p in (images, known))
        lines.append(
            f"the teacher's weights were trained on images normalised with {there}, these are with"
            f" {here}"
        )
    return lines


def _alike(known: Told, images: ImageSet) -> bool:
    pairs = zip((*known.mean, *known.std), (*images.mean, *images.std), strict=True)
    return all(abs(one - other) < SAME for one, other in pairs)


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def file_lines(data: DataSplits) -> list[str]:
    """What is to be said of the files that images are from: how many were read, what was not."""
    lines = []
    share = data.train.about.get("test_share")
    for name, part in zip(("" if share else "train ", "test "), data, strict=True):
        if (line := _read_and_left(name, part.about)) is not None:
            lines.append(line)
    if share is not None:
        n, whole = len(data.test), len(data.train) + len(data.test)
        lines.append(
            f"{n:,} of {whole:,} images are set aside to test on (data.test_share {share:g})"
        )
    return lines


def _read_and_left(name: str, about: Mapping[str, Any]) -> str | None:
    left, bad = about.get("left_out", {}), about.get("unreadable", [])
    if not left and not bad:
        return None
    parts = [f"left out: {told_files(left)}"] if left else []
    if bad:
        parts.append(f"{len(bad)} unreadable and left out: {_some(bad)}")
    return f"{about['files']:,} {name}images read; {'; '.join(parts)}"
