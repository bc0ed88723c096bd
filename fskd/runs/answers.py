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
from torch import Tensor, nn

from fskd.results.store import RunDir, replacing
from fskd.runs.evaluate import predict
from fskd.runs.hashes import file_hash
from fskd.runs.session import Session
from fskd.types import ImageSet

MOST_BYTES = 1 << 26  # on disk
MOST_SETS = 4  # in memory
# Fidelity on training points is a mean; this many are enough and bound the time.
TRAIN_POINTS = 4096


def ask(
    net: nn.Module, who: str, images: ImageSet, session: Session, some: Tensor | None = None
) -> Tensor:
    """Logits as ``predict`` gives them, with a line or a bar if that takes long.

    Args:
        net: The network.
        who: Title of the pass.
        images: The images.
        session: Device and screen.
        some: Positions of some of them; all if None.
    """
    with session.screen.passing(who, len(images if some is None else some)) as seen:
        return predict(net, images, session.device, some, seen=seen)


def on_test(net: nn.Module, about: dict[str, Any], images: ImageSet, session: Session) -> Tensor:
    """The teacher's logits on the test images, float32 (N, K).

    Args:
        net: The teacher.
        about: Its ``key``, and its ``run`` if a run made it.
        images: The test images.
        session: Keeps them.
    """
    key = f"{about['key']} {images.identity}"
    if key in session.test_logits:
        return session.test_logits[key]
    folder = RunDir(session.out / about["run"]) if "run" in about else None
    found = None if folder is None else _read(folder, images)
    if found is None:
        found = ask(net, "teacher on the test images", images, session)
        if folder is not None:
            keep(folder, found, images)
    while len(session.test_logits) >= MOST_SETS:
        session.test_logits.pop(next(iter(session.test_logits)))
    session.test_logits[key] = found
    return found


def on_train(
    net: nn.Module, about: dict[str, Any], images: ImageSet, subset: Tensor, session: Session
) -> tuple[Tensor, Tensor]:
    """The first examples of a subset, (n,), and the teacher's logits on them, float32 (n, K).

    It is asked before and after a training; the last answer is kept in between.

    Args:
        net: The teacher.
        about: Its ``key``.
        images: The training images.
        subset: Positions of the examples.
        session: Keeps the answer.
    """
    points = subset[:TRAIN_POINTS]
    known = session.train_logits
    if known is not None and known[0] == _on(about, images, points):
        return points, known[1]
    found = ask(net, "teacher on the training images", images, session, points)
    keep_on_train(about, images, points, found, session)
    return points, found


def keep_on_train(
    about: dict[str, Any], images: ImageSet, points: Tensor, logits: Tensor, session: Session
) -> None:
    """Keeps what a teacher said of some training images in memory, for ``on_train``."""
    session.train_logits = _on(about, images, points), logits


def _on(about: dict[str, Any], images: ImageSet, points: Tensor) -> str:
    return f"{about['key']} {images.identity} {points.tolist()}"


def keep(folder: RunDir, logits: Tensor, images: ImageSet) -> None:
    """Writes a network's logits on the test images beside its weights, unless they are many."""
    if logits.numel() * 4 <= MOST_BYTES:
        with replacing(folder.test_logits) as temporary:
            safetensors.torch.save_file({"logits": logits}, temporary, _whose(folder, images))


def write_answers(path: Path, logits: Tensor) -> None:
    """Writes what a black box said of the training images, so that it is not asked again."""
    with replacing(path) as temporary:
        safetensors.torch.save_file({"logits": logits.cpu().contiguous()}, temporary)


def read_answers(path: Path, rows: int, device: torch.device) -> Tensor | None:
    """What ``write_answers`` wrote, (rows, K); None if that is not what lies there."""
    try:
        logits = safetensors.torch.load_file(path)["logits"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    return logits.to(device) if len(logits) == rows else None


def _whose(folder: RunDir, images: ImageSet) -> dict[str, str]:
    """Hash of what the logits follow from; of several, safetensors would change the order."""
    what = repr((images.identity, file_hash(folder.student, "teacher")))
    return {"whose": hashlib.sha256(what.encode()).hexdigest()}


def _read(folder: RunDir, images: ImageSet) -> Tensor | None:
    """What ``keep`` wrote of these weights and images; None if that is not what lies there."""
    try:
        with safetensors.safe_open(folder.test_logits, framework="pt") as stored:
            if stored.metadata() != _whose(folder, images):
                return None
            logits: Tensor = stored.get_tensor("logits")
    except (OSError, safetensors.SafetensorError):
        return None
    fits = logits.shape == (len(images), images.num_classes) and logits.dtype == torch.float32
    return logits if fits else None
