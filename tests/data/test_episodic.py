"""Episodes and learn2learn task sets over fskd subsets."""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fskd.data.augment import normalise
from fskd.data.datasets.base import load
from fskd.data.samplers.base import samplers
from fskd.data.samplers.episodic import (
    INSTALL,
    Episode,
    EpisodicSettings,
    _own_stream,
    draw_episodes,
    taskset,
)
from fskd.data.splits import rank, subset_size
from fskd.errors import FskdError, SettingError
from fskd.types import DataSplits

needs_learn2learn = pytest.mark.skipif(
    find_spec("learn2learn") is None, reason="needs the extra 'episodic'"
)


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load("digits")


@pytest.fixture(scope="module")
def subset(digits: DataSplits) -> Tensor:
    """30 examples of each class, as a stratified run would get them."""
    ranking = rank("digits", "stratified", samplers.get("stratified")(), digits.train, 3)
    return ranking.order[: subset_size(digits.train.targets, 10, shots=30)]


@pytest.fixture
def streams_untouched() -> Iterator[None]:
    """The test uses up nobody's random numbers."""
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index] # noqa: NPY002
    yield
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


# --- learn2learn's task set ----------------------------------------------------------------------


@needs_learn2learn
def test_taskset_is_learn2learns(digits: DataSplits, subset: Tensor) -> None:
    """Its own ``Taskset`` yields labelled batches of images of the subset and of no others."""
    tasks = taskset(digits.train, subset, ways=5, shots=3, queries=4, n_tasks=6, seed=1)
    from learn2learn.data import Taskset

    assert type(tasks) is Taskset
    names = [type(t).__name__ for t in tasks.task_transforms]
    assert names == ["NWays", "KShots", "LoadData", "RemapLabels"]
    known = {
        normalise(digits.train.images[i][None], digits.train)[0].numpy().tobytes(): int(
            digits.train.targets[i]
        )
        for i in subset.tolist()
    }
    seen = 0
    for images, labels in tasks:
        seen += 1
        assert images.shape == (35, 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.bincount().tolist() == [7] * 5
        assert (labels.view(5, 7) == labels.view(5, 7)[:, :1]).all(), "class by class"
        assert len({x.numpy().tobytes() for x in images}) == 35
        pairs = {(known[x.numpy().tobytes()], int(y)) for x, y in zip(images, labels, strict=True)}
        assert len(pairs) == 5, "one label for each class"
    assert seen == len(tasks) == 6


@needs_learn2learn
def test_taskset_depends_on_seed_and_number(
    digits: DataSplits, subset: Tensor, streams_untouched: None
) -> None:
    def make(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        tasks = taskset(digits.train, subset, 3, 2, 1, n, seed)
        order = range(n) if seed else reversed(range(n))
        found = {i: tasks[i] for i in order}
        return [found[i] for i in range(n)]

    for one, other in zip(make(3, 0), make(5, 0), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    first = make(5, 0)
    assert len({images.numpy().tobytes() for images, _ in first}) == 5
    assert not torch.equal(first[0][0], make(5, 1)[0][0])


@needs_learn2learn
def test_taskset_in_a_data_loader(digits: DataSplits, subset: Tensor) -> None:
    """As learn2learn's users load it: batches of tasks."""
    tasks = taskset(digits.train, subset, 4, 1, 2, 6)
    loader = DataLoader(tasks, batch_size=3, generator=torch.Generator())
    shapes = [(tuple(images.shape), tuple(labels.shape)) for images, labels in loader]
    assert shapes == [((3, 12, 1, 8, 8), (3, 12))] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ways": 11}, "ways: 11 .* 1 to 10"),
        ({"ways": 0}, "ways: 0 "),
        ({"shots": 20, "queries": 11}, "shots and queries: 20 and 11 .* 1 to 30"),
        ({"shots": -1}, "shots and queries"),
        ({"n_tasks": 0}, "n_tasks: 0 .* at least 1"),
    ],
)
@needs_learn2learn
def test_taskset_refuses(
    change: dict[str, int], words: str, digits: DataSplits, subset: Tensor
) -> None:
    right = {"ways": 5, "shots": 3, "queries": 4, "n_tasks": 1}
    with pytest.raises(SettingError, match=words):
        taskset(digits.train, subset, **{**right, **change})


# --- episodes ------------------------------------------------------------------------------------


def draw(data: DataSplits, seed: int = 0, shots: int = 3, **settings: object) -> list[Episode]:
    return list(draw_episodes(data, EpisodicSettings.model_validate(settings), shots, seed))


@needs_learn2learn
@pytest.mark.parametrize("split", ["test", "train"])
def test_counts_and_classes(split: str, digits: DataSplits) -> None:
    """N classes, K + Q examples of each, and support and queries that share none."""
    asked = getattr(digits, split)
    drawn = draw(digits, ways=4, queries=6, episodes=30, query_split=split)
    assert len(drawn) == 30
    for classes, support, queries in drawn:
        assert len(set(classes.tolist())) == 4
        assert torch.equal(digits.train.targets[support], classes.repeat_interleave(3))
        assert torch.equal(asked.targets[queries], classes.repeat_interleave(6))
        assert len(set(support.tolist())) == 12
        assert len(set(queries.tolist())) == 24
        if split == "train":
            assert not set(support.tolist()) & set(queries.tolist())
    assert {c for episode in drawn for c in episode.classes.tolist()} == set(range(10))
    assert len({tuple(e.support.tolist()) for e in drawn}) == 30


@needs_learn2learn
def test_episode_depends_on_seed_and_number(digits: DataSplits, streams_untouched: None) -> None:
    state = random.getstate()
    random.seed(1)
    few = draw(digits, episodes=2)
    random.seed(2)
    many = draw(digits, episodes=5)
    random.setstate(state)
    for one, other in zip(few, many, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(draw(digits, seed=1, episodes=1)[0].support, many[0].support)


@needs_learn2learn
def test_draws_are_those_of_nways_and_kshots(digits: DataSplits) -> None:
    """The fused transform that is used for speed draws what the two would."""
    drawn = draw(digits, seed=7, ways=4, queries=2, episodes=3, query_split="train")
    from learn2learn.data import MetaDataset, transforms
    from torch.utils.data import TensorDataset

    targets = digits.train.targets
    meta = MetaDataset(TensorDataset(torch.zeros(len(targets)), targets))
    ways, shots = transforms.NWays(meta, 4), transforms.KShots(meta, 5)
    for number, (_, support, queries) in enumerate(drawn):
        with _own_stream(7, number):
            rows = torch.tensor([d.index for d in shots(ways(None))]).view(4, 5)
        assert torch.equal(rows[:, :3].flatten(), support)
        assert torch.equal(rows[:, 3:].flatten(), queries)


class Unreadable:
    """Images that must not be looked at."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def load(self, index: int) -> object:
        raise AssertionError(f"image {index} was loaded")


@needs_learn2learn
def test_drawing_loads_no_image(digits: DataSplits) -> None:
    parts = [replace(part, images=Unreadable(len(part))) for part in digits]
    assert len(draw(DataSplits(*parts), episodes=3)) == 3


# --- without learn2learn -------------------------------------------------------------------------


def test_without_learn2learn(digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the extra and the commands of the README."""
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    for use in (
        lambda: draw(digits),
        lambda: taskset(digits.train, torch.arange(100), 2, 1, 1, 1),
        lambda: samplers.get("episodic")().check(digits, 3, 0),
    ):
        with pytest.raises(FskdError, match="extra 'episodic'") as caught:
            use()
        assert INSTALL in str(caught.value)
        assert "\n" not in str(caught.value)
    readme = Path(__file__).parents[2] / "README.md"
    assert INSTALL in readme.read_text(encoding="utf-8").splitlines()
