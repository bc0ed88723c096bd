"""From a data set to the examples a student may see: rank, take a prefix, carve validation."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from fskd.data.samplers.base import Sampler
from fskd.errors import DataError, SettingError
from fskd.seeding import numpy_generator
from fskd.types import ImageSet, Pool, Ranking


class Subset(NamedTuple):
    """The examples of one run, as positions in the training set.

    Attributes:
        train: int64 (n,).
        val: int64 (n_val,), disjoint from ``train``; empty unless asked for.
        split_sha256: Hash of the ranking that both come from.
        left: int64, all others, in the order of the ranking.
    """

    train: Tensor
    val: Tensor
    split_sha256: str
    left: Tensor


def order_hash(order: Tensor) -> str:
    """sha256 of an order, as little-endian uint32."""
    return hashlib.sha256(order.numpy().astype("<u4").tobytes()).hexdigest()


def rank(
    dataset: str,
    name: str,
    sampler: Sampler,
    images: ImageSet,
    seed: int,
    pool: Pool | None = None,
) -> Ranking:
    """The full order that a sampler gives for one split seed.

    Args:
        dataset: Name of the data set.
        name: Name of the sampler.
        sampler: The sampler.
        images: The training images.
        seed: Split seed.
        pool: Labels and teacher outputs; the labels alone if None.
    """
    pool = pool or Pool(images.targets)
    order = torch.from_numpy(sampler.rank(pool, numpy_generator(seed, "split")))
    settings = sampler.settings.model_dump(mode="json")
    return Ranking(dataset, name, settings, seed, order, images.fingerprint, order_hash(order))


def subset_size(
    targets: Tensor,
    num_classes: int,
    fraction: float | None = None,
    shots: int | None = None,
    n: int | None = None,
) -> int:
    """How many examples a fraction, k shots per class, or n are.

    Raises:
        SettingError: If there are not that many.

    Example:
        >>> subset_size(torch.tensor([0, 1] * 50), 2, fraction=0.25)
        25
    """
    total = len(targets)
    if shots is not None:
        least = int(torch.bincount(targets, minlength=num_classes).min())
        if shots > least:
            accepted = f"at most {least}, the size of the smallest class"
            raise SettingError("data.shots", shots, accepted)
        return shots * num_classes
    if n is not None:
        if n > total:
            raise SettingError("data.n", n, f"at most {total}, the size of the training set")
        return n
    return max(round((1.0 if fraction is None else fraction) * total), 1)


def take(ranking: Ranking, size: int, n_val: int, targets: Tensor, num_classes: int) -> Subset:
    """The first ``size`` examples of an order, and the next ``n_val`` for validation.

    Raises:
        DataError: If a class has no example in the subset.
        SettingError: If too few examples are left for validation.
    """
    train = ranking.order[:size]
    missing = torch.bincount(targets[train], minlength=num_classes).eq(0).nonzero().flatten()
    if len(missing):
        raise DataError(
            f"a subset of {size} examples has none of class {int(missing[0])}"
            f" ({len(missing)} of {num_classes} classes are missing); use at least"
            f" {num_classes} examples, or the sampler 'stratified'"
        )
    left = len(ranking.order) - size
    if n_val > left:
        raise SettingError("data.val", n_val, f"at most {left}, the examples outside the subset")
    _, val, others = ranking.order.tensor_split([size, size + n_val])
    return Subset(train, val, ranking.sha256, others)


def check_balance(targets: Tensor, shots: int, source: str) -> None:
    """SettingError unless the chosen examples are ``shots`` of every class."""
    counts = torch.bincount(targets)
    if int(counts.min()) != shots or int(counts.max()) != shots:
        accepted = f"n or fraction: the first examples of {source} are not {shots} of every class"
        raise SettingError("data.shots", shots, accepted)
