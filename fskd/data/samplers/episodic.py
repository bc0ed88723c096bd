"""Episodes: many small N-way k-shot tasks, drawn with learn2learn's task transforms.

This is the only file that imports learn2learn, on first use. learn2learn draws from Python's global
generator; here every task has a seed of its own, and the global stream is put back.
"""

import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from fskd.data.augment import normalise
from fskd.data.loader import DecodedImages
from fskd.data.samplers.base import SamplerSettings, samplers
from fskd.data.samplers.stratified import Stratified
from fskd.errors import FskdError, SettingError
from fskd.seeding import derive
from fskd.types import DataSplits, ImageSet

INSTALL = (
    'pip install ".[episodic]" && pip install --no-deps --use-pep517 --no-build-isolation'
    ' --config-settings="--global-option=build_ext" learn2learn==0.2.0'
)

SMALLEST = "the size of the smallest class"


class EpisodicSettings(SamplerSettings):
    """Settings of episodes; ``data.shots`` says how many support examples a class has."""

    ways: int = Field(5, ge=2, description="Classes of an episode.")
    queries: int = Field(15, ge=1, description="Query examples per class.")
    episodes: int = Field(50, ge=1)
    query_split: Literal["test", "train"] = Field(
        "test", description="Where queries come from: train to choose settings, test to report."
    )


class Episode(NamedTuple):
    """One task, as positions in a data set.

    Attributes:
        classes: The data set's number of each of the episode's classes 0..N-1, int64 (N,).
        support: Positions of the examples to learn from, class by class, int64 (N*K,).
        queries: Positions of the examples to be tested on, class by class, int64 (N*Q,).
    """

    classes: Tensor
    support: Tensor
    queries: Tensor


@samplers.register("episodic")
class Episodic(Stratified):
    """Many small tasks of data.ways classes with data.shots examples each (extra 'episodic').

    A run trains a student on every episode; its order of the whole set is ``stratified``'s.
    """

    Settings = EpisodicSettings
    settings: EpisodicSettings
    # A few seconds a student on one core; docs/episodic.md has what was measured.
    defaults: ClassVar[Mapping[str, Any]] = {"budget": {"steps": 200}, "optim": {"batch_size": 32}}

    def check(self, data: DataSplits, shots: int | None, n_val: int) -> None:
        settings, classes = self.settings, data.train.num_classes
        if shots is None:
            accepted = "the number of support examples per class with episodic"
            raise SettingError("data.shots", "none", accepted)
        if n_val:
            raise SettingError("data.val", n_val, "0 with episodic; see data.query_split")
        if settings.ways > classes:
            raise SettingError("data.ways", settings.ways, f"at most {classes}, all classes")
        least = _smallest_class(data.train)
        if shots > least:
            raise SettingError("data.shots", shots, f"at most {least}, {SMALLEST}")
        left = _smallest_class(data.test) if settings.query_split == "test" else least - shots
        if settings.queries > left:
            accepted = f"at most {left}, {SMALLEST} of the {settings.query_split} part"
            if settings.query_split == "train":
                accepted += " without the support"
            raise SettingError("data.queries", settings.queries, accepted)
        _learn2learn()


def _smallest_class(images: ImageSet) -> int:
    return int(torch.bincount(images.targets, minlength=images.num_classes).min())


def draw_episodes(
    data: DataSplits, settings: EpisodicSettings, shots: int, seed: int
) -> Iterator[Episode]:
    """The episodes of a run; number e depends on the seed and e alone.

    Support comes from the training part; queries from the test part, or from what the support
    leaves of the training part, so the two never share an example.

    Args:
        data: The data set.
        settings: Numbers of classes, queries and episodes.
        shots: K, support examples per class.
        seed: Split seed.

    Raises:
        FskdError: If learn2learn is not installed.
    """
    transforms = _learn2learn().data.transforms
    ways, n_queries, apart = settings.ways, settings.queries, settings.query_split == "test"
    train = _meta(data.train, torch.arange(len(data.train)))
    support = transforms.FusedNWaysKShots(train, ways, shots + (0 if apart else n_queries))
    test = _meta(data.test, torch.arange(len(data.test))) if apart else train
    queries = transforms.FusedNWaysKShots(test, ways, n_queries)
    for number in range(settings.episodes):
        with _own_stream(seed, number):
            rows = _positions(support(None)).view(ways, -1)
            classes = data.train.targets[rows[:, 0]]
            asked = rows[:, shots:]
            if apart:
                queries.filter_labels = classes.tolist()
                drawn = _positions(queries(None)).view(ways, n_queries)
                found = data.test.targets[drawn[:, 0]]  # the same classes in an order of their own
                asked = drawn[(found == classes[:, None]).long().argmax(1)]
        yield Episode(classes, rows[:, :shots].flatten(), asked.flatten())


def taskset(
    images: ImageSet,
    subset: Tensor,
    ways: int,
    shots: int,
    queries: int,
    n_tasks: int,
    seed: int = 0,
) -> Any:
    """A learn2learn ``Taskset`` over an fskd subset, for users of learn2learn.

    Its transforms are ``NWays``, ``KShots``, ``LoadData`` and ``RemapLabels``. All tasks are drawn
    here, so number i is the same in every order of access, and nobody's random numbers are used up.

    Args:
        images: A data set's training part.
        subset: Positions that tasks may use, int64 (n,).
        ways: N, classes of a task.
        shots: K, support examples per class.
        queries: Q, query examples per class.
        n_tasks: Number of tasks.
        seed: Task i depends on the seed and i alone.

    Returns:
        A ``learn2learn.data.Taskset``; a task is (normalised images (N*(K+Q), C, H, W), labels
        0..N-1), class by class, the first K of each class being the support.

    Raises:
        SettingError: If the subset has too few classes or too few examples of one.
        FskdError: If learn2learn is not installed.
    """
    library = _learn2learn()
    transforms = library.data.transforms
    counts = torch.bincount(images.targets[subset])
    sizes = counts[counts > 0].tolist()
    if not 1 <= ways <= len(sizes):
        raise SettingError("ways", ways, f"1 to {len(sizes)}, the number of classes")
    if min(shots, queries) < 0 or not 1 <= shots + queries <= min(sizes):
        accepted = f"together 1 to {min(sizes)}, the size of the smallest class"
        raise SettingError("shots and queries", f"{shots} and {queries}", accepted)
    if n_tasks < 1:
        raise SettingError("n_tasks", n_tasks, "at least 1")
    meta = _meta(images, subset)
    load = [transforms.LoadData(meta), transforms.RemapLabels(meta)]
    choose = [transforms.NWays(meta, ways), transforms.KShots(meta, shots + queries)]
    tasks = library.data.Taskset(meta, [*choose, *load], num_tasks=n_tasks)
    # The same draws as those of NWays and KShots, without listing every example of the classes.
    fused = transforms.FusedNWaysKShots(meta, ways, shots + queries)
    for number in range(n_tasks):
        with _own_stream(seed, number):
            description = fused(None)
            for transform in load:
                description = transform(description)
        tasks.sampled_descriptions[number] = description
    return tasks


class _SubsetImages(Dataset[tuple[Tensor, int]]):
    """(normalised image (C, H, W), class) of every example of a subset."""

    def __init__(self, images: ImageSet, subset: Tensor) -> None:
        self.images, self.subset = images, subset
        self.decoded = None if isinstance(images.images, Tensor) else DecodedImages(images)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        position = int(self.subset[index])
        if self.decoded is None:
            image = self.images.images[position]  # type: ignore[index]
        else:
            image = self.decoded[position, index][0]
        return normalise(image[None], self.images)[0], int(self.images.targets[position])


def _meta(images: ImageSet, subset: Tensor) -> Any:
    """A learn2learn ``MetaDataset``; the classes are known, so no image is loaded to find them."""
    labels = dict(enumerate(images.targets[subset].tolist()))
    return _learn2learn().data.MetaDataset(_SubsetImages(images, subset), indices_to_labels=labels)


def _positions(description: list[Any]) -> Tensor:
    return torch.tensor([example.index for example in description])


@contextmanager
def _own_stream(seed: int, number: int) -> Iterator[None]:
    """Seeds Python's global generator for a while; the stream goes on afterwards as before."""
    state = random.getstate()
    random.seed(derive(seed, "episode", number))
    try:
        yield
    finally:
        random.setstate(state)


def _learn2learn() -> ModuleType:
    try:
        with redirect_stderr(io.StringIO()):  # gym, which it imports, prints that it is old
            import learn2learn
    except ImportError as error:
        reason = f"learn2learn cannot be imported ({error})"
        raise FskdError(
            f"data.sampler: 'episodic' needs the extra 'episodic', and {reason}; install with:"
            f" {INSTALL}"
        ) from None
    return learn2learn
