"""The types that flow between the parts: batches, network outputs, image sets and settings.

Everything here is plain data. ``Batch`` and ``Outputs`` are NamedTuples because those pass through
DDP, autocast wrappers and ``torch.compile``, where frozen dataclasses are refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

# Taps that were not asked for are None; typed as tensors because reading one is a method's bug.
_NOT_READ = cast(Tensor, None)

TAPS = ("logits", "embedding", "stem", "stages", "pre")


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def later(default: Any, **about: Any) -> Any:
    """A field that was added after results were published: left out while it has its default.

    So the keys of finished runs, which are made from their settings, stay as they are.

    Args:
        default: The value that runs had before there was the field.
        about: As for ``pydantic.Field``.
    """
    return Field(default, exclude_if=lambda value: value == default, **about)


class Batch(NamedTuple):
    """Rows that the networks see in one step.

    First come B real and labelled rows, then unlabelled ones, then those made by a generator, then
    extra views that a method asked for (such as rotations). Any of them may be absent; B is 0 when
    a generator replaces the real rows.

    Attributes:
        inputs: Normalised images, (rows, C, H, W), float.
        targets: Class of each real row, (B,), int64.
        indices: Position of each real row within the training subset, (B,), int64 in [0, n).
        parts: Where the rows after the real ones lie, by name: ``unlabelled``, ``generated`` and
            the names of views.
        view: Number of the discrete view in which the real rows are shown; -1 if they are moved
            freely, so that no two steps show the same.
        parents: Classes of the parents of each generated row, (M, k), int64, -1 for an unlabelled
            parent; None without generated rows or if they have no parents.
        shares: Share of each parent, (M, k), float, rows sum to 1.
        soft: Class probabilities that a method gave to the first rows, (n, K), float; else None.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    parts: Mapping[str, slice] = {}
    view: int = 0
    parents: Tensor | None = None
    shares: Tensor | None = None
    soft: Tensor | None = None

    def part(self, name: str) -> slice:
        """Where the rows of a name lie; ``real`` and ``base`` (all but views) included."""
        if name == "real":
            return slice(0, len(self.targets))
        if name == "base":
            return slice(0, self.n_base)
        return self.parts.get(name, slice(0, 0))

    def count(self, name: str) -> int:
        """Number of rows of a name."""
        rows = self.part(name)
        return int(rows.stop - rows.start)

    @property
    def n_real(self) -> int:
        """B, the number of real rows."""
        return len(self.targets)

    @property
    def n_generated(self) -> int:
        """M, the number of generated rows."""
        return self.count("generated")

    @property
    def n_known(self) -> int:
        """Real and unlabelled rows: those that are images of the data."""
        return self.n_real + self.count("unlabelled")

    @property
    def n_base(self) -> int:
        """The rows before the extra views."""
        return self.n_known + self.n_generated


class Outputs(NamedTuple):
    """What a network gave for the rows of a batch; only the taps that were asked for are filled.

    ``Outputs()`` stands for a network that was not run.

    Attributes:
        logits: (rows, K).
        embedding: Pooled features before the classifier, (rows, D).
        stages: Maps of each block of equal resolution behind the stem, shallow to deep, each
            (rows, C_l, H_l, W_l), after the activation.
        pre: The same maps before their last activation.
        stem: Map before the first stage, (rows, C, H, W).
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


class Tools(NamedTuple):
    """What a method may use when a phase begins, and a generator when an epoch begins.

    Attributes:
        progress: Where training stands.
        ask: Runs a network by name on (inputs, taps) in eval mode without gradient; what the
            teacher is asked is counted.
        batches: Yields the real rows of one pass over the subset, without views.
        rng: CPU generator of this moment.
        say: Shows the user a line.
    """

    progress: Progress
    ask: Callable[[str, Tensor, frozenset[str]], Outputs]
    batches: Callable[[], Iterator[Batch]]
    rng: torch.Generator
    say: Callable[[str], None] = lambda _: None


class TapShapes(NamedTuple):
    """Shapes of one network's taps, without the batch axis.

    Attributes:
        norms: The batch norm that made each pre-activation, None where none did. Its weights may
            be loaded after the shapes are known, so they are to be read when a phase begins.
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
        student: Tap shapes of the student.
        teacher: Tap shapes of the teacher; None where there is none. Of several teachers, the first
            one's.
        targets: Class of every example of the subset in index order, (n,), int64.
        inputs: Shape of one image, (C, H, W).
        seed: Seed of the method's own draws; streams are derived from it and the step.
        n_teachers: How many teachers there are.
    """

    num_classes: int
    n_train: int
    student: TapShapes
    teacher: TapShapes | None
    targets: Tensor
    inputs: tuple[int, ...] = ()
    seed: int = 0
    n_teachers: int = 1

    @property
    def known(self) -> TapShapes:
        """Tap shapes of the teacher, which is there."""
        return cast(TapShapes, self.teacher)


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
        about: What is to be said of where they are from, such as how many files were left out.
    """

    images: Tensor | LazyImages
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    size: tuple[int, int, int]
    about: Mapping[str, Any] = field(default_factory=dict)

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
