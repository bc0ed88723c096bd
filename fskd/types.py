"""The types that flow between the parts: batches, network outputs, image sets and settings.

Everything here is plain data. ``Batch`` and ``Outputs`` are NamedTuples because those pass through
DDP, autocast wrappers and ``torch.compile``, where frozen dataclasses are refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

# Taps that were not asked for are None; typed as tensors because reading one is a method's bug.
_NOT_READ = cast(Tensor, None)

TAPS = ("logits", "embedding", "stem", "stages", "pre")


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class Batch(NamedTuple):
    """Rows that the networks see in one step.

    Rows come in three groups: B real and labelled rows, then M rows made by a generator, then V
    extra views that a method asked for (such as rotations). M and V may be 0, and B is 0 when a
    generator replaces the real rows.

    Attributes:
        inputs: Normalised images, (B+M+V, C, H, W), float.
        targets: Class of each real row, (B,), int64.
        indices: Position of each real row within the training subset, (B,), int64 in [0, n).
        n_generated: M.
        mixed_targets: Classes of the parents of each generated row, (M, k), int64; None if M = 0
            or if the generator mixes no labelled rows.
        mixed_weights: Share of each parent, (M, k), float, rows sum to 1.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    n_generated: int = 0
    mixed_targets: Tensor | None = None
    mixed_weights: Tensor | None = None

    @property
    def n_real(self) -> int:
        """B, the number of real rows."""
        return len(self.targets)

    @property
    def n_base(self) -> int:
        """B + M, the rows before the extra views."""
        return self.n_real + self.n_generated


class Outputs(NamedTuple):
    """What a network gave for the rows of a batch; only the taps that were asked for are filled.

    ``Outputs()`` stands for a network that was not run.

    Attributes:
        logits: (rows, K).
        embedding: Pooled features before the classifier, (rows, D).
        stages: Maps of each block of equal resolution behind the stem, shallow to deep, each
            (rows, C_l, H_l, W_l), after the activation.
        pre: The same maps before their last activation.
        stem: Map that the first block is fed with, or its last map before pooling,
            (rows, C, H, W).
    """

    logits: Tensor = _NOT_READ
    embedding: Tensor = _NOT_READ
    stages: tuple[Tensor, ...] = ()
    pre: tuple[Tensor, ...] = ()
    stem: Tensor = _NOT_READ

    def rows(self, index: slice | Tensor) -> "Outputs":
        """The same taps for some of the rows."""
        return Outputs(
            self.logits if self.logits is _NOT_READ else self.logits[index],
            self.embedding if self.embedding is _NOT_READ else self.embedding[index],
            tuple(stage[index] for stage in self.stages),
            tuple(stage[index] for stage in self.pre),
            self.stem if self.stem is _NOT_READ else self.stem[index],
        )


class Progress(NamedTuple):
    """Where training stands.

    Attributes:
        phase: Name of the current phase.
        fraction: Share of this phase that is done, in [0, 1).
        step: Optimiser updates made in the whole run, initial phases included.
        epoch: Passes over the training subset that are complete.
    """

    phase: str = "main"
    fraction: float = 0.0
    step: int = 0
    epoch: int = 0


class EpochContext(NamedTuple):
    """What a method or generator may use between epochs.

    Attributes:
        progress: Where training stands.
        students: Runs student i on (inputs, taps to read) in eval mode without gradient.
        teacher: The same for the teacher, counted as queries; None where there is none.
        batches: Yields the real rows that the coming epoch will see, without views.
        rng: CPU generator of this epoch.
    """

    progress: Progress
    students: "tuple[Callable[[Tensor, frozenset[str]], Outputs], ...]"
    teacher: "Callable[[Tensor, frozenset[str]], Outputs] | None"
    batches: Callable[[], Iterator[Batch]]
    rng: torch.Generator


class TapShapes(NamedTuple):
    """Shapes of one network's taps, without the batch axis.

    ``norms`` holds, for each map in ``pre``, the batch normalisation that made it, None where there
    is none. They are the network's own modules, since its weights may be loaded later.
    """

    logits: tuple[int, ...]
    embedding: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    pre: tuple[tuple[int, ...], ...]
    stem: tuple[int, ...] = ()
    norms: tuple[nn.Module | None, ...] = ()


class Shapes(NamedTuple):
    """All that a method may know when it builds its adapters and buffers.

    Attributes:
        num_classes: K.
        n_train: n, the number of training examples in the subset.
        students: Tap shapes of each student.
        teacher: Tap shapes of the teacher; None where there is none.
        targets: Class of every example of the subset in index order, (n,), int64.
        inputs: Shape of one image, (C, H, W).
        seed: Seed of the method's own draws; streams are derived from it and the step.
    """

    num_classes: int
    n_train: int
    students: tuple[TapShapes, ...]
    teacher: TapShapes | None
    targets: Tensor
    inputs: tuple[int, ...] = ()
    seed: int = 0


@runtime_checkable
class LazyImages(Protocol):
    """Images that stay on disk and are decoded when asked for."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, index: int) -> Any:
        """One decoded image (a PIL image)."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images without augmentation.

    Attributes:
        images: uint8 (N, C, H, W), or images that stay on disk.
        targets: int64 (N,), classes 0..K-1.
        classes: Names of the K classes.
        mean: Per-channel mean of the images scaled to [0, 1], used to normalise.
        std: Per-channel standard deviation on the same scale.
        fingerprint: sha256 over images and labels, in hexadecimal.
        size: (C, H, W) that the networks receive.
    """

    images: Tensor | LazyImages
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    size: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What a network sees of them: images, labels, and how they are normalised."""
        return self.fingerprint, self.mean, self.std, self.size, self.classes


class DataSplits(NamedTuple):
    """A data set: what may be trained on and what is read once, at the end."""

    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Pool:
    """What a sampler may look at.

    Attributes:
        targets: int64 (N,).
        embeddings: Teacher embeddings (N, D), or None.
        logits: Teacher logits (N, K), or None.
    """

    targets: Tensor
    embeddings: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Ranking:
    """A full order of the training examples; every subset is a prefix of it, so subsets nest.

    Attributes:
        dataset: Registry name of the data set.
        sampler: Registry name of the sampler.
        settings: The sampler's settings.
        seed: Split seed.
        order: int64 (N,), a permutation of 0..N-1.
        fingerprint: Fingerprint of the training images that the order belongs to.
        sha256: Hash of the order, in hexadecimal.
        teacher: Name and key of the teacher whose outputs the sampler read; None if it read none.
        source: Name of the file that the order was read from, or ``computed``.
    """

    dataset: str
    sampler: str
    settings: Mapping[str, Any]
    seed: int
    order: Tensor
    fingerprint: str
    sha256: str
    teacher: Mapping[str, str] | None = None
    source: str = "computed"
