"""Orders for other programs, orders of others, and how much two orders share."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fskd.data.datasets.base import Source, load
from fskd.data.index_lists import complete, read_indices
from fskd.data.split_files import check_data
from fskd.data.splits import check_balance, order_hash, subset_size
from fskd.errors import SettingError
from fskd.raw import refuse_together
from fskd.types import ImageSet, Pool, Ranking


def to_csv(ranking: Ranking, chosen: Tensor) -> str:
    """One line a chosen example: its rank and its position in the training set."""
    lines = (f"{rank},{index}" for rank, index in enumerate(chosen.tolist()))
    return "\n".join(["rank,index", *lines]) + "\n"


def to_json(ranking: Ranking, chosen: Tensor) -> str:
    """The chosen positions with what they belong to."""
    about = {
        "dataset": ranking.dataset,
        "fingerprint": ranking.fingerprint,
        "sampler": ranking.sampler,
        "settings": dict(ranking.settings),
        "seed": ranking.seed,
        "order_sha256": ranking.sha256,
        "indices": chosen.tolist(),
    }
    return json.dumps(about) + "\n"


def to_list(ranking: Ranking, chosen: Tensor) -> str:
    """The chosen positions alone, as a JSON list."""
    return json.dumps(chosen.tolist()) + "\n"


EXPORTS: dict[str, Callable[[Ranking, Tensor], str]] = {
    "csv": to_csv, "json": to_json, "hf": to_list, "torch": to_list
}  # fmt: skip
# What to write in another program; train_set is the whole training split in its published order.
SNIPPETS = {
    "hf": 'import json\nwith open("{file}") as f: indices = json.load(f)\n'
    "subset = train_set.select(indices)  # train_set: datasets.Dataset",
    "torch": 'import json\nwith open("{file}") as f: indices = json.load(f)\n'
    "subset = torch.utils.data.Subset(train_set, indices)",
}


def imported(
    path: Path, name: str, dataset: str, root: Path | None, seed: int
) -> tuple[Ranking, int]:
    """An order that begins with the indices in a file, and how many those are.

    Args:
        path: A list of indices, see ``read_indices``.
        name: What to call it.
        dataset: The data set that it is about.
        root: Where the data are.
        seed: Split seed of the examples that follow.

    Raises:
        FskdError: If the list cannot be read or does not fit the data.
    """
    given = read_indices(path)
    images = load(dataset, Source(root)).train
    order = torch.from_numpy(complete(given, Pool(images.targets), seed, path.name))
    settings = {"name": name, "given": len(given)}
    fingerprint = images.fingerprint
    ranking = Ranking(dataset, "imported", settings, seed, order, fingerprint, order_hash(order))
    return ranking, len(given)


def shared(a: Tensor, b: Tensor) -> Tensor:
    """Positions that are in both, sorted.

    Example:
        >>> shared(torch.tensor([4, 1, 2]), torch.tensor([2, 0, 4])).tolist()
        [2, 4]
    """
    return torch.from_numpy(np.intersect1d(a.numpy(), b.numpy(), assume_unique=True))


def compare(a: Tensor, b: Tensor, total: int) -> tuple[str, str, str, str]:
    """Size, number shared, number two independent choices share on average, and Jaccard index.

    Example:
        >>> compare(torch.tensor([4, 1]), torch.tensor([4, 0]), 10)
        ('2', '1', '0.4', '0.333')
    """
    both = len(shared(a, b))
    union = len(a) + len(b) - both
    return str(len(a)), str(both), f"{len(a) * len(b) / total:.1f}", f"{both / union:.3f}"


def images_of(ranking: Ranking, root: Path | None) -> ImageSet:
    """The training images that an order belongs to."""
    images = load(ranking.dataset, Source(root)).train
    check_data(ranking, images.fingerprint, len(images))
    return images


def size_of(ranking: Ranking, fraction: float) -> int:
    """Number of examples that a share of the training set is, at least one."""
    if not 0 < fraction <= 1:
        raise SettingError("--fraction", fraction, "a number in (0, 1]")
    return max(round(fraction * len(ranking.order)), 1)


def chosen_of(
    ranking: Ranking,
    images: ImageSet | None,
    fraction: float | None,
    shots: int | None,
    n: int | None,
) -> tuple[Tensor, str]:
    """The prefix asked for, all if nothing is, and a short name of its size.

    Args:
        ranking: The order.
        images: What it orders; needed for ``shots`` alone.
        fraction: Share of the training set, in (0, 1].
        shots: Examples per class.
        n: Examples in all.
    """
    refuse_together({"fraction": fraction, "shots": shots, "n": n})
    if shots is not None and images is not None:
        size = subset_size(images.targets, images.num_classes, shots=shots)
        check_balance(images.targets[ranking.order[:size]], shots, ranking.source)
        return ranking.order[:size], f"{shots}shot"
    if n is not None:
        if n > len(ranking.order):
            raise SettingError("--n", n, f"at most {len(ranking.order)}")
        return ranking.order[:n], f"n{n}"
    share = 1.0 if fraction is None else fraction
    return ranking.order[: size_of(ranking, share)], f"{100 * share:g}pct"
