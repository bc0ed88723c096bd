"""Verification of split files: bytes, contents, the data they belong to, and the seed."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fskd.data.datasets.base import Source, load
from fskd.data.manifest import check_order, load_split, place_of, split_names
from fskd.data.samplers.base import samplers
from fskd.data.split_files import check_data
from fskd.data.splits import rank
from fskd.errors import DataError, FskdError
from fskd.types import ImageSet, Ranking


def places(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """(folder, name) of every split file that files and folders of them stand for."""
    for path in paths:
        if path.is_dir():
            yield from ((path, name) for name in split_names(path))
        else:
            yield place_of(path)


class Check(NamedTuple):
    """What verification found about one file.

    Attributes:
        name: Place of the file in its folder.
        sha256: Hash of its order; empty if it could not be read.
        problem: What is wrong; empty if nothing is.
        unchecked: What could not be checked, and why; empty if everything was.
    """

    name: str
    sha256: str
    problem: str
    unchecked: str


def verify(folder: Path, name: str, root: Path | None = None) -> Check:
    """Checks one file of a folder as far as this machine allows.

    Args:
        folder: Folder of split files.
        name: Place of the file in it.
        root: Where the data are; the places that the data set knows by itself if None.
    """
    sha256 = ""
    try:
        ranking = load_split(folder, name)
        if ranking is None:
            raise DataError(f"{name}: listed in the manifest, but not there")
        sha256 = ranking.sha256
        check_order(ranking, folder, name)
        try:
            images = _images(ranking.dataset, root)
        except FskdError as error:
            return Check(name, sha256, "", f"data not at hand ({error})")
        check_data(ranking, images.fingerprint, len(images))
        unchecked = recompute(ranking, images)
    except FskdError as error:
        return Check(name, sha256, str(error), "")
    return Check(name, sha256, "", unchecked)


@lru_cache(maxsize=1)
def _images(dataset: str, root: Path | None) -> ImageSet:
    return load(dataset, Source(root)).train


def recompute(ranking: Ranking, images: ImageSet) -> str:
    """Derives the order from the seed again; returns why not where that is impossible.

    Raises:
        DataError: If another order comes out.
        FskdError: If there is no such sampler, or it has other settings.
    """
    if ranking.sampler == "imported":
        return "order not recomputed (imported)"
    kind = samplers.get(ranking.sampler)
    if kind.reads:
        name = (ranking.teacher or {}).get("name", "a teacher")
        return f"order not recomputed (chosen by {name})"
    try:
        settings = kind.Settings.model_validate(ranking.settings)
    except ValueError:
        raise DataError(f"{ranking.source}: its settings are not {ranking.sampler}'s") from None
    found = rank(ranking.dataset, ranking.sampler, kind(settings), images, ranking.seed)
    if found.sha256 != ranking.sha256:
        raise DataError(
            f"{ranking.source}: holds the order {ranking.sha256}, but seed {ranking.seed} of"
            f" {ranking.sampler} gives {found.sha256}"
        )
    return ""
