"""What a teacher says of the test images: asked once, and shared by all students that it has.

A process keeps the last few answers in memory. Those of a teacher that a run made also lie beside
its weights, so that the next process, too, is spared the longest pass of a short run.
"""

import hashlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fskd.models.taps import FeatureNet
from fskd.results.store import replacing
from fskd.train.evaluate import predict
from fskd.train.session import Session
from fskd.types import ImageSet

FILE = "test_logits.safetensors"
MOST_BYTES = 1 << 26  # on disk
MOST_SETS = 4  # in memory


def on_test(net: FeatureNet, about: dict[str, Any], images: ImageSet, session: Session) -> Tensor:
    """The teacher's logits on the test images, float32 (N, K).

    Args:
        net: The teacher.
        about: Its ``key``, and its ``run`` if a run made it.
        images: The test images.
        session: Keeps them.
    """
    mark = images_mark(images)
    key = f"{about['key']}-{mark}"
    if key in session.test_logits:
        return session.test_logits[key]
    folder = session.out / about["run"] if "run" in about else None
    found = None if folder is None else _read(folder / FILE, mark)
    if found is not None and found.shape != (len(images), images.num_classes):
        found = None  # not what its name says
    if found is None:
        with session.screen.passing("teacher on the test images", len(images)) as seen:
            found = predict(net, images, session.device, seen=seen)
        if folder is not None:
            keep(folder, found, images)
    while len(session.test_logits) >= MOST_SETS:
        session.test_logits.pop(next(iter(session.test_logits)))
    session.test_logits[key] = found
    return found


def keep(folder: Path, logits: Tensor, images: ImageSet) -> None:
    """Writes a network's logits on the test images into its run's folder, unless they are many."""
    if logits.numel() * 4 <= MOST_BYTES:
        with replacing(folder / FILE) as temporary:
            metadata = {"images": images_mark(images)}
            safetensors.torch.save_file({"logits": logits.contiguous()}, temporary, metadata)


def images_mark(images: ImageSet) -> str:
    """Hash of the images and of how they are normalised."""
    what = repr((images.fingerprint, images.mean, images.std, images.size, images.classes))
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _read(path: Path, mark: str) -> Tensor | None:
    """What ``keep`` wrote of these images; None if there is nothing, or it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("images") != mark:
                return None
            logits: Tensor = stored.get_tensor("logits")
    except (OSError, safetensors.SafetensorError):
        return None
    return logits if logits.dtype == torch.float32 and logits.dim() == 2 else None
