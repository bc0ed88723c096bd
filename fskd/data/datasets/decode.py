"""Image files as they look: 8-bit RGB, upright, on a background, at the scale of their data set."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fskd.data.datasets.depth import FLOAT_WHITE, WHITES, deep
from fskd.data.datasets.files import one_line
from fskd.errors import DataError

# Decoding releases Python's lock, so a few threads help; more would only wait for the disk.
N_THREADS = 4
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


SPARE = 4  # pixels decoded for each that is needed, along a side, where a JPEG has more


class Look(NamedTuple):
    """How images of a data set are read.

    Attributes:
        background: Colour behind transparent pixels.
        white: Value of white in integers of more than 8 bits; that of floats is 1.
        side: They are needed at this side, in pixels, at most; None for their own size.
    """

    background: str = "white"
    white: float = WHITES[-1]
    side: int | None = None


PLAIN = Look()


def open_rgb(path: Path, look: Look = PLAIN) -> Image.Image:
    """Decodes one file to RGB, upright, at its own size or a reduced one.

    A large JPEG is decoded at a half, quarter or eighth where that leaves at least four times
    ``look.side``. Scaled to that side, photographs then differ from the whole ones by 0.2 of 255
    levels in the mean over pixels, and the worst of 44 by 1.0.

    Raises:
        DataError: The file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            if look.side is not None:
                image.draft("RGB", (SPARE * look.side, SPARE * look.side))
            return to_rgb(image, look.background, look.white)
    except Exception as error:  # Pillow fails in many ways on a damaged file.
        raise DataError(f"{path} cannot be decoded: {one_line(error)}") from error


def to_rgb(image: Image.Image, background: str = "white", white: float = WHITES[-1]) -> Image.Image:
    """Converts an image to what it looks like in RGB.

    It is turned as its EXIF orientation says, grey is repeated, transparent pixels show the
    background, and pixels of more than 8 bits are scaled.

    Args:
        image: Of any mode.
        background: Colour behind transparent pixels.
        white: Value of white in integers of more than 8 bits; that of floats is 1.

    Raises:
        ValueError: The pixels are of another kind.
    """
    image = ImageOps.exif_transpose(image)
    if deep(image):
        pixels = np.asarray(image)
        shown = _scaled(pixels, FLOAT_WHITE if image.mode == "F" else white)
        if (clear := image.info.get("transparency")) is not None:  # a value of PNGs in grey
            shown.paste(background, mask=Image.fromarray(pixels == clear))
        return shown
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _on(image, background)
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"images of mode {image.mode} have no fixed range")
    return image.convert("RGB")


def check_header(path: Path) -> None:
    """DataError unless a file looks like a picture without decoding it."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:
        raise DataError(f"{path} cannot be decoded: {one_line(error)}") from error


def _scaled(pixels: np.ndarray, white: float) -> Image.Image:
    levels = np.rint(pixels.astype(np.float64) * (255 / white))
    if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 255):
        raise ValueError(f"pixels outside 0..{white:g}")
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _on(image: Image.Image, background: str) -> Image.Image:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # alpha is multiplied in there
    image = image.convert(straight or "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, scaled to ``side`` pixels (bilinear, antialiased).

    The same as scaling the shorter side and cropping, without the large image in between.
    """
    width, height = image.size
    if width == height == side:
        return image
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def each(paths: Sequence[Path], use: Callable[[int], None]) -> dict[int, str]:
    """Uses files by their index, with a few threads; those that fail, and why.

    Args:
        paths: N files.
        use: Called with each index; raises DataError if the file is bad.
    """

    def problem(index: int) -> str:
        try:
            use(index)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(N_THREADS) as pool:
        found = pool.map(problem, range(len(paths)))
        return {index: text for index, text in enumerate(found) if text}


def decode_all(
    paths: Sequence[Path],
    side: int,
    prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> np.ndarray:
    """Decodes files of one size into one array.

    Args:
        paths: N files.
        side: Height and width in pixels after ``prepare``.
        prepare: Applied to each RGB image; by default nothing.

    Returns:
        uint8 (N, 3, side, side).

    Raises:
        DataError: Files cannot be decoded or have another size; the message names them.
    """
    pixels, bad = decode(paths, side, PLAIN, prepare)
    refuse(bad)
    return pixels


def decode(
    paths: Sequence[Path], side: int, look: Look, prepare: Callable[[Image.Image], Image.Image]
) -> tuple[np.ndarray, dict[int, str]]:
    """The same, where bad files are not refused: their pixels are 0, and why they are bad."""
    pixels = np.zeros((len(paths), 3, side, side), np.uint8)

    def read(index: int) -> None:
        image = prepare(open_rgb(paths[index], look))
        if image.size != (side, side):
            width, height = image.size
            raise DataError(f"{paths[index]} is {width}x{height}, not {side}x{side}")
        pixels[index] = np.asarray(image).transpose(2, 0, 1)

    return pixels, each(paths, read)


MOST_LISTED = 50


def refuse(bad: dict[int, str], hint: str = "") -> None:
    """DataError that lists all bad files; nothing if there are none."""
    if not bad:
        return
    texts = list(bad.values())
    more = f"; and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    count = f"{len(texts)} bad files: " if len(texts) > 1 else ""
    raise DataError(f"{count}{'; '.join(texts[:MOST_LISTED])}{more}{hint}")
