"""A picture of the chosen examples: one row of small images per class."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fskd.results.store import replacing
from fskd.types import ImageSet

GAP = 2


def contact_sheet(images: ImageSet, chosen: Tensor, columns: int = 20, side: int = 56) -> Tensor:
    """The first examples of every class, in the order of ``chosen``.

    Args:
        images: The training images.
        chosen: Positions, (n,).
        columns: Largest number of images a row.
        side: Width and height of an image on the sheet, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    targets = images.targets[chosen]
    counts = torch.bincount(targets, minlength=images.num_classes)
    shape = images.num_classes, min(int(counts.max()), columns)
    height, width = (n * (side + GAP) + GAP for n in shape)
    sheet = torch.full((height, width, 3), 255, dtype=torch.uint8)
    for row in range(shape[0]):
        for column, index in enumerate(chosen[targets == row][:columns].tolist()):
            top, left = (GAP + n * (side + GAP) for n in (row, column))
            sheet[top : top + side, left : left + side] = _thumbnail(images, index, side)
    return sheet


def _thumbnail(images: ImageSet, index: int, side: int) -> Tensor:
    from PIL import Image

    if isinstance(images.images, Tensor):
        pixels = (
            images.images[index].expand(3, -1, -1)
            if images.size[0] == 1
            else (images.images[index][:3])
        )
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    else:
        picture = images.images.load(index).convert("RGB")
    small = picture.width < side
    resized = picture.resize(
        (side, side), Image.Resampling.NEAREST if small else Image.Resampling.BOX
    )
    return torch.from_numpy(np.array(resized))


def write_png(path: Path, sheet: Tensor) -> None:
    """Writes a picture (height, width, 3) at one stroke."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(sheet.numpy()).save(temporary, format="PNG")
