"""Tiny ImageNet: 110,000 labelled colour images in 200 classes, 64x64."""

from collections.abc import Sequence
from pathlib import Path

from fskd.data.datasets.base import Extent, Source, dataset, image_set
from fskd.data.datasets.decode import PLAIN, decode_all
from fskd.data.datasets.files import find_file, one_line
from fskd.data.datasets.kept import Decoded, kept
from fskd.data.datasets.recipes import crd_recipe
from fskd.errors import DataError
from fskd.types import DataSplits, ImageSet

FOLDER = "tiny-imagenet-200"
SIDE = 64
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)

Examples = tuple[list[Path], list[int]]


@dataset(
    "tiny_imagenet",
    defaults=crd_recipe(100_000, epochs=100, crop=8),
    extent=Extent(100_000, 10_000, 200, (3, 64, 64)),
)
def tiny_imagenet(source: Source) -> DataSplits:
    """100,000 training and 10,000 test images, 64x64 colour, 200 classes of ImageNet.

    Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", 2015. The official validation
    part is the test part here, since the labels of the official test part are not public. Classes
    are in the order of their WordNet ids and are named by their line in ``words.txt``. It cannot be
    downloaded from here. About 1.4 GB of memory.

    Args:
        source: The root is, or holds, the folder ``tiny-imagenet-200``.

    Raises:
        SettingError: The folder was not found.
        DataError: A file is missing or damaged.
    """
    roots = [source.root / FOLDER, source.root] if source.root else []
    listing = find_file([root / "wnids.txt" for root in roots], source, f"{FOLDER}/wnids.txt")
    root = listing.parent
    wnids = sorted(line.strip() for line in _lines(listing) if line.strip())
    if len(set(wnids)) != len(wnids) or not wnids:
        raise DataError(f"{listing} must list classes, each of them once")
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    classes = [words.get(wnid, wnid) for wnid in wnids]
    return DataSplits(
        _decode(_train_examples(root, wnids), classes, source.cache_gib),
        _decode(_val_examples(root, wnids), classes, source.cache_gib),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


def _train_examples(root: Path, wnids: Sequence[str]) -> Examples:
    paths: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        found = sorted(folder.glob("*.JPEG"))
        if not found:
            raise DataError(f"{folder} has no images (*.JPEG)")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _val_examples(root: Path, wnids: Sequence[str]) -> Examples:
    listing = root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(_lines(listing), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        if wnid not in label_of:
            raise DataError(f"{listing}, line {number}: '{wnid}' is not a class of wnids.txt")
        paths.append(root / "val" / "images" / name)
        labels.append(label_of[wnid])
    return paths, labels


def _decode(examples: Examples, classes: Sequence[str], room: float) -> ImageSet:
    paths, labels = examples

    def make() -> Decoded:
        return Decoded(decode_all(paths, SIDE), {}, PLAIN.white)

    pixels = kept(paths, PLAIN, "tiny_imagenet", room, make).pixels
    return image_set(pixels, labels, classes, MEAN, STD)
