"""Decodes image files to 8-bit RGB."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fskd.data.datasets.files import one_line
from fskd.errors import DataError

# Decoding releases Python's lock, so a few threads help; more would only wait for the disk.
_N_THREADS = 4
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")


def open_rgb(path: Path) -> Image.Image:
    """Decodes one file to RGB at its own size.

    Raises:
        DataError: The file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow fails in many ways on a damaged file.
        raise DataError(f"{path} cannot be decoded: {one_line(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB: grey is repeated, transparency dropped, 16 bits cut to 8.

    Raises:
        ValueError: The pixels are of a kind without a fixed range, such as floats.
    """
    if image.mode.startswith("I;16"):
        # Pillow would clip the 16-bit values to 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"images of mode {image.mode} have no fixed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, scaled to ``side`` pixels (bilinear, antialiased).

    The same as scaling the shorter side and cropping, without the large image in between.
    """
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def decode_all(
    paths: Sequence[Path],
    side: int,
    prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> np.ndarray:
    """Decodes files into one array, with a few threads.

    Args:
        paths: N files.
        side: Height and width in pixels after ``prepare``.
        prepare: Applied to each RGB image; by default nothing.

    Returns:
        uint8 (N, 3, side, side).

    Raises:
        DataError: A file cannot be decoded or has another size; the message names it.
    """
    pixels = np.empty((len(paths), 3, side, side), np.uint8)

    def decode(index: int) -> None:
        image = prepare(open_rgb(paths[index]))
        if image.size != (side, side):
            width, height = image.size
            raise DataError(f"{paths[index]} is {width}x{height}, not {side}x{side}")
        pixels[index] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(_N_THREADS) as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass  # Consuming the results raises what a thread raised.
    return pixels
