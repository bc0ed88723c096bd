"""The stream of indices and the two loaders behind one interface."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fskd.data.augment import AugmentSettings, normalise
from fskd.data.loader import DeviceLoader, IndexStream, WorkerLoader, chunks, make_loader
from fskd.types import Batch, ImageSet

CPU = torch.device("cpu")
SIZE = 8
SUBSET = torch.tensor([11, 3, 0, 7, 9, 5, 2])
ALL_MOVES = AugmentSettings(crop=1, flip=True, affine=1.0)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Pictures:
    """Images that are made when asked for; the colour tells the position."""

    def __init__(self, n: int, noisy: bool = False) -> None:
        self.n, self.noisy = n, noisy

    def __len__(self) -> int:
        return self.n

    def load(self, index: int) -> Image.Image:
        pixels = np.full((2 * SIZE, 3 * SIZE, 3), 10 * index, dtype=np.uint8)
        if self.noisy:
            noise = np.random.default_rng(index).integers(0, 100, pixels.shape, dtype=np.uint8)
            pixels = pixels + noise
        return Image.fromarray(pixels)


def on_disk(noisy: bool = False) -> ImageSet:
    """Twelve pictures of four classes."""
    return ImageSet(
        Pictures(12, noisy), torch.arange(12) % 4, tuple("abcd"), (0.5, 0.4, 0.3),
        (0.2, 0.3, 0.1), "f" * 64, (3, SIZE, SIZE),
    )  # fmt: skip


def in_memory() -> ImageSet:
    """The same in memory."""
    images = (10 * torch.arange(12, dtype=torch.uint8)).view(12, 1, 1, 1)
    plain = on_disk()
    return ImageSet(
        images.expand(12, 3, SIZE, SIZE).clone(), plain.targets, plain.classes, plain.mean,
        plain.std, plain.fingerprint, plain.size,
    )  # fmt: skip


def equal(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))


def check_rows(batch: Batch, source: ImageSet) -> None:
    """Labels and pixels belong to the indices, which count within the subset."""
    assert batch.indices.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == (len(batch.indices), 3, SIZE, SIZE)
    assert ((batch.indices >= 0) & (batch.indices < len(SUBSET))).all()
    positions = SUBSET[batch.indices]
    assert torch.equal(batch.targets, source.targets[positions])
    assert (batch.n_generated, batch.parents) == (0, None)


def check_pixels(inputs: torch.Tensor, positions: torch.Tensor, source: ImageSet) -> None:
    colour = (10 * positions).to(torch.uint8).view(-1, 1, 1, 1)
    expected = normalise(colour.expand(len(positions), 3, SIZE, SIZE), source)
    torch.testing.assert_close(inputs, expected)


# --- IndexStream -------------------------------------------------------------------------------


@quick
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**40), st.integers(1, 6))
def test_every_epoch_is_a_permutation(n: int, rows: int, seed: int, epochs: int) -> None:
    """Full batches, laid end to end, are permutations of the examples."""
    stream = IndexStream(n, rows, seed)
    batches = [stream(step) for step in range(-(-epochs * n // rows))]
    assert all(b.shape == (rows,) and b.dtype == torch.int64 for b in batches)
    laid = torch.cat(batches)
    for epoch in range(epochs):
        assert sorted(laid[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@quick
@given(st.integers(1, 20), st.integers(1, 30), st.lists(st.integers(0, 50), min_size=1))
def test_stateless(n: int, rows: int, steps: list[int]) -> None:
    """A step has the same indices in any order of asking."""
    stream = IndexStream(n, rows, 3)
    for step in steps:
        assert torch.equal(stream(step), IndexStream(n, rows, 3)(step))


@quick
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 60))
def test_epoch(n: int, rows: int, step: int) -> None:
    """Permutations that are used up before a step."""
    stream = IndexStream(n, rows, 0)
    seen = torch.cat([torch.empty(0, dtype=torch.int64), *(stream(s) for s in range(step))])
    counts = torch.bincount(seen, minlength=n)
    assert stream.epoch(step) == int(counts.min())


def test_orders_differ() -> None:
    """From epoch to epoch and from seed to seed; the global stream is left alone."""
    state = torch.get_rng_state()
    stream = IndexStream(50, 50, 0)
    orders = [stream(step) for step in range(5)] + [IndexStream(50, 50, 1)(0)]
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(torch.get_rng_state(), state)


# --- DeviceLoader ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 7, 20])
@pytest.mark.parametrize("moves", [AugmentSettings(), AugmentSettings(flip=True)])
def test_device_loader(rows: int, moves: AugmentSettings) -> None:
    """Labels and images match; indices are re-based to the subset."""
    source = in_memory()
    loader = DeviceLoader(source, SUBSET, rows, moves, 0, CPU)
    assert loader.fixed_views is not moves.active
    assert not loader.sharded
    for step in range(5):
        batch = loader.batch(step)
        assert batch.n_real == rows
        assert torch.equal(batch.indices, loader.stream(step))
        check_rows(batch, source)
        check_pixels(batch.inputs, SUBSET[batch.indices], source)


def test_device_loader_is_stateless() -> None:
    """Augmented batches depend on seed and step alone; the data stay as they are."""
    source = in_memory()
    assert isinstance(source.images, torch.Tensor)
    before = source.images.clone()
    loader = DeviceLoader(source, SUBSET, 5, ALL_MOVES, 4, CPU)
    in_order = [loader.batch(step) for step in range(4)]
    for step in (2, 0, 3, 1):
        fresh = DeviceLoader(source, SUBSET, 5, ALL_MOVES, 4, CPU)
        assert equal(fresh.batch(step), in_order[step])
        assert equal(loader.batch(step), in_order[step])
    other = DeviceLoader(source, SUBSET, 5, ALL_MOVES, 5, CPU)
    assert not torch.equal(other.batch(0).inputs, in_order[0].inputs)
    assert torch.equal(source.images, before)


def test_augmentation_does_not_move_the_order() -> None:
    """Indices are the same with and without moves."""
    plain = DeviceLoader(in_memory(), SUBSET, 5, AugmentSettings(), 4, CPU)
    moved = DeviceLoader(in_memory(), SUBSET, 5, ALL_MOVES, 4, CPU)
    for step in range(4):
        assert torch.equal(plain.batch(step).indices, moved.batch(step).indices)


def test_device_loader_refuses_lazy_images() -> None:
    """It says what to use."""
    with pytest.raises(TypeError, match="use WorkerLoader"):
        DeviceLoader(on_disk(), SUBSET, 2, AugmentSettings(), 0, CPU)


# --- WorkerLoader ------------------------------------------------------------------------------


def worker_loader(workers: int = 0, noisy: bool = True, **settings: int) -> WorkerLoader:
    moves = ALL_MOVES if noisy else AugmentSettings()
    return WorkerLoader(on_disk(noisy), SUBSET, 5, moves, 4, CPU, workers, **settings)


def test_worker_loader() -> None:
    """The same rows as from memory, when nothing is random."""
    loader, memory = worker_loader(noisy=False), in_memory()
    twin = DeviceLoader(memory, SUBSET, 5, AugmentSettings(), 4, CPU)
    assert loader.fixed_views
    assert loader.sharded
    for step in range(4):
        batch = loader.batch(step)
        check_rows(batch, memory)
        check_pixels(batch.inputs, SUBSET[batch.indices], memory)
        assert equal(batch, twin.batch(step))


def test_workers_change_nothing() -> None:
    """Decoding here or in two processes gives the same augmented batches, in any order."""
    here, there = worker_loader(0), worker_loader(2)
    in_order = [here.batch(step) for step in range(4)]
    assert not here.fixed_views
    assert all(not torch.equal(a.inputs, b.inputs) for a, b in pairwise(in_order))
    for step in (0, 1, 2, 3, 1, 2):
        assert equal(there.batch(step), in_order[step])
    for step in (3, 0, 2, 2):
        assert equal(here.batch(step), in_order[step])


def test_ranks_partition_the_rows() -> None:
    """Two processes see the joint rows, each once, with the same augmentation."""
    joint, ranks = worker_loader(), [worker_loader(rank=r, world=2) for r in range(2)]
    for step in (0, 1, 3):
        whole = joint.batch(step)
        for rank, loader in enumerate(ranks):
            part = loader.batch(step)
            own = slice(rank, None, 2)
            for a, b in zip(whole[:3], part[:3], strict=True):
                assert torch.equal(a[own], b)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_stream_is_left_alone(workers: int) -> None:
    """Neither a loader nor a pass draws from it, so that a resumed run repeats."""
    state = torch.get_rng_state()
    loader = worker_loader(workers)
    for step in (0, 1, 3):
        loader.batch(step)
    assert len(list(chunks(on_disk(), CPU, workers=workers))) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_make_loader() -> None:
    """By where the images are."""
    given = (SUBSET, 2, AugmentSettings(), 0, CPU)
    assert isinstance(make_loader(in_memory(), *given), DeviceLoader)
    assert isinstance(make_loader(on_disk(), *given), WorkerLoader)


# --- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [in_memory(), on_disk()], ids=["memory", "disk"])
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_chunks_of_a_subset(source: ImageSet, rows: int) -> None:
    """Each example once, in the order of the subset."""
    parts = list(chunks(source, CPU, SUBSET, rows, workers=0))
    assert [len(images) for images, _ in parts] == [len(p) for p in SUBSET.split(rows)]
    assert torch.equal(torch.cat([positions for _, positions in parts]), SUBSET)
    for images, positions in parts:
        check_pixels(images, positions, source)


@pytest.mark.parametrize("source", [in_memory(), on_disk()], ids=["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_of_everything(source: ImageSet, workers: int) -> None:
    """All examples by default."""
    parts = list(chunks(source, CPU, rows=5, workers=workers))
    assert torch.cat([positions for _, positions in parts]).tolist() == list(range(12))
    check_pixels(torch.cat([images for images, _ in parts]), torch.arange(12), source)
