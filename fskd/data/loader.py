"""Batches of training rows, and passes over images for evaluation.

Two loaders behind one interface: images that fit live on the device as uint8 and are cut, flipped
and normalised as whole batches; images that do not are decoded in worker processes. Which examples
step t sees is a function of (seed, t): the indices come from an endless stream of permutations, so
a batch is full even with fewer examples than rows, and a resumed run needs no saved state.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fskd.data.augment import AugmentSettings, Part, augment, normalise
from fskd.data.datasets.decode import centre_square
from fskd.errors import DataError, SettingError
from fskd.seeding import to_device, torch_generator
from fskd.types import Batch, ImageSet

# Pixels of the images that go through a network at once where nothing is learned. On a CPU the maps
# of so many stay in the cache and below the size from which every pass gets fresh memory, page by
# page, from the system; twice as many take up to twice the time. On a GPU launches cost more.
PIXELS = {"cpu": 100_000}
PIXELS_ELSEWHERE = 1 << 20


class IndexStream:
    """Indices of every step: permutations of 0..n-1 laid end to end and cut into rows.

    Args:
        n: Number of examples.
        rows: Examples a step.
        seed: Seed of the order.

    Example:
        >>> stream = IndexStream(n=3, rows=2, seed=0)
        >>> sorted(torch.cat([stream(0), stream(1), stream(2)]).tolist())
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, n: int, rows: int, seed: int) -> None:
        self.n, self.rows, self.seed = n, rows, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices of one step, int64 (rows,)."""
        start, parts, missing = step * self.rows, [], self.rows
        while missing:
            epoch, offset = divmod(start, self.n)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return torch.cat(parts)

    def epoch(self, step: int) -> int:
        """Permutations used up before this step."""
        return step * self.rows // self.n

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            rng = torch_generator(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=rng)
        return self._order


class Loader(Protocol):
    """What the training loop asks of a loader.

    Attributes:
        stream: The indices of every step.
        sharded: True if a batch holds this process's rows only; otherwise it is the joint batch
            of all processes, which is divided after generation.
        fixed_views: True if an example always looks the same, so that teacher logits can be kept.
    """

    stream: IndexStream
    sharded: bool
    fixed_views: bool

    def batch(self, step: int) -> Batch:
        """Real rows of one step."""


class DeviceLoader:
    """Loader of images kept on the device as uint8.

    Args:
        source: The training images.
        subset: Positions of the n examples that may be seen, int64 (n,).
        rows: Real rows a step.
        moves: Augmentation.
        seed: Run seed; order and augmentation have streams of their own.
        device: Where images live and batches are made.
        view: Number of the view; views show the same images in the same order, moved differently.
    """

    sharded = False

    def __init__(
        self,
        source: ImageSet,
        subset: Tensor,
        rows: int,
        moves: AugmentSettings,
        seed: int,
        device: torch.device,
        view: int = 0,
    ) -> None:
        if not isinstance(source.images, Tensor):
            raise TypeError("DeviceLoader needs images in memory; use WorkerLoader")
        self.images = source.images[subset].to(device)
        self.targets = source.targets[subset].to(device)
        self.source, self.moves, self.seed, self.device = source, moves, seed, device
        self.stream, self.view = IndexStream(len(subset), rows, seed), view
        self.fixed_views = not moves.active

    def batch(self, step: int) -> Batch:
        """Real rows of one step."""
        index = to_device(self.stream(step), self.device)
        images = self.images[index]
        if self.moves.active:
            rng = torch_generator(self.seed, "augment", step, *_view(self.view))
            images = augment(images, self.moves, rng)
        return Batch(normalise(images, self.source), self.targets[index], index)


class WorkerLoader:
    """Loader of images on disk, decoded in worker processes, then moved like those in memory.

    With one process, its batches are those that a ``DeviceLoader`` makes of the same images.

    Args:
        source: The training images (``LazyImages``).
        subset: Positions of the n examples that may be seen, int64 (n,).
        rows: Real rows a step, over all processes.
        moves: Augmentation.
        seed: Run seed.
        device: Where batches are put.
        workers: Worker processes; 0 decodes in this one.
        rank: Number of this process.
        world: Number of processes.
        view: As of a ``DeviceLoader``.
    """

    sharded = True

    def __init__(
        self,
        source: ImageSet,
        subset: Tensor,
        rows: int,
        moves: AugmentSettings,
        seed: int,
        device: torch.device,
        workers: int = 2,
        rank: int = 0,
        world: int = 1,
        view: int = 0,
    ) -> None:
        self.source, self.subset, self.seed, self.device = source, subset, seed, device
        self.stream, self.view = IndexStream(len(subset), rows, seed), view
        self.fixed_views, self.moves = not moves.active, moves
        self.dataset = DecodedImages(source)
        self.workers, self.rank, self.world = workers, rank, world
        self._next_step = -1
        self._batches: Iterator[Any] = iter(())

    def batch(self, step: int) -> Batch:
        """Real rows of one step; steps asked for in order are prefetched."""
        if step != self._next_step:
            loader = DataLoader(
                self.dataset,
                batch_sampler=_Steps(self, step),
                num_workers=self.workers,
                generator=torch.Generator(),  # or it draws a base seed from the global stream
            )
            self._batches, self._next_step = _told_in_one_line(iter(loader)), step
        images, index = next(self._batches)
        self._next_step += 1
        targets = self.source.targets[self.subset[index]].to(self.device)
        images = images.to(self.device)
        if self.moves.active:
            rng = torch_generator(self.seed, "augment", step, *_view(self.view))
            own = Part(self.stream.rows, slice(self.rank, None, self.world))
            images = augment(images, self.moves, rng, own)
        return Batch(normalise(images, self.source), targets, index.to(self.device))

    def rows_of(self, step: int) -> list[tuple[int, int]]:
        """(position in the data set, position in the subset) of this process's rows."""
        index = self.stream(step).tolist()[self.rank :: self.world]
        return [(int(self.subset[i]), i) for i in index]


def _view(number: int) -> tuple[str | int, ...]:
    """What tells the stream of a further view from the first one's."""
    return ("view", number) if number else ()


class _Steps:
    """Endless batch sampler from one step on."""

    def __init__(self, loader: WorkerLoader, start: int) -> None:
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            yield self.loader.rows_of(step)
            step += 1


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Decodes one image at a time: uint8 (C, H, W) and its position in the subset."""

    def __init__(self, source: ImageSet) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: tuple[int, int]) -> tuple[Tensor, int]:
        position, index = row
        channels, _, side = self.source.size
        image = self.source.images.load(position)  # type: ignore[union-attr]
        image = centre_square(image.convert("L" if channels == 1 else "RGB"), side)
        pixels = np.array(image).reshape(*image.size[::-1], channels)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), index


def _told_in_one_line(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; the error of a worker comes without its traceback."""
    try:
        yield from batches
    except DataError as error:
        text = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
        raise DataError(f"{text}; data.on_error=skip leaves bad files out") from error


def make_loader(
    source: ImageSet,
    subset: Tensor,
    rows: int,
    moves: AugmentSettings,
    seed: int,
    device: torch.device,
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
    view: int = 0,
) -> DeviceLoader | WorkerLoader:
    """The loader that fits the images.

    Raises:
        SettingError: If there are fewer rows than processes.
    """
    if rows < world:
        raise SettingError("optim.batch_size", rows, f"at least one real row per process ({world})")
    if isinstance(source.images, Tensor):
        return DeviceLoader(source, subset, rows, moves, seed, device, view)
    return WorkerLoader(source, subset, rows, moves, seed, device, workers, rank, world, view)


def rows_at_once(size: tuple[int, ...], device: torch.device) -> int:
    """How many images (C, H, W) go through a network at once in evaluation.

    Example:
        >>> [rows_at_once((1, side, side), torch.device("cpu")) for side in (8, 28, 224)]
        [256, 127, 8]
    """
    pixels = PIXELS.get(device.type, PIXELS_ELSEWHERE)
    low, high = (8, 256) if device.type in PIXELS else (1, 4096)
    return min(max(pixels // (size[-2] * size[-1]), low), high)


def chunks(
    source: ImageSet,
    device: torch.device,
    subset: Tensor | None = None,
    rows: int | None = None,
    workers: int = 2,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass without augmentation: (normalised images, positions) in order.

    Args:
        source: The images.
        device: Where they are put.
        subset: Positions; all of them if None.
        rows: Images at a time; ``rows_at_once`` if None.
        workers: Decoding processes for images on disk.
    """
    rows = rows or rows_at_once(source.size, device)
    order = torch.arange(len(source)) if subset is None else subset
    if isinstance(source.images, Tensor):
        for part in order.split(rows):
            yield normalise(source.images[part].to(device), source), part
        return
    rows_of = [[(int(i), int(i)) for i in part] for part in order.split(rows)]
    loader = DataLoader(
        DecodedImages(source),
        batch_sampler=rows_of,
        num_workers=workers,
        generator=torch.Generator(),
    )
    for images, part in _told_in_one_line(iter(loader)):
        yield normalise(images.to(device), source), part
