"""Which order of the training examples a run uses: a file's, the seed's, or the teacher's."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fskd.config import RunConfig
from fskd.data.loader import chunks
from fskd.data.manifest import check_order, load_split, read_listed, shipped
from fskd.data.samplers.base import Sampler, samplers
from fskd.data.samplers.stratified import Stratified
from fskd.data.split_files import check_data, file_name
from fskd.data.splits import Subset, check_balance, rank, subset_size, take
from fskd.errors import DataError, SettingError
from fskd.settings import DataConfig
from fskd.types import DataSplits, ImageSet, Pool, Ranking

COMPUTE = "none"  # data.splits=none


def make_sampler(data: DataConfig) -> Sampler:
    """The sampler that the settings name."""
    name, settings = data.sampler.parts[0]
    return samplers.get(name)(settings)  # type: ignore[arg-type]


def split_name(data: DataConfig) -> str:
    """Place of the order within a folder of split files."""
    sampler = make_sampler(data)
    defaults = type(sampler).Settings().model_dump(mode="json")
    settings = sampler.settings.model_dump(mode="json")
    return file_name(data.name, data.sampler.name, settings, defaults, data.split_seed)


def known_ranking(config: RunConfig, images: ImageSet) -> Ranking | None:
    """The order from a file if there is one, else from the seed.

    Args:
        config: The settings of the run.
        images: The training images.

    Returns:
        The order, or None if the sampler reads the teacher and there is no file.

    Raises:
        FskdError: If a file is damaged, of other data, or not what its name says.
    """
    data = config.data
    if data.split_file is not None:
        path = Path(data.split_file).expanduser()
        if not path.is_file():
            raise SettingError("data.split_file", f"'{path}'", "a split file (there is none)")
        given = read_listed(path)
        check_data(given, images.fingerprint, len(images))
        return given
    folder, name, sampler = _folder(data), split_name(data), make_sampler(data)
    if folder is not None and (found := load_split(folder, name)) is not None:
        hint = "; data.splits=none computes an order for these data"
        check_data(found, images.fingerprint, len(images), hint)
        _check_is(found, data, sampler, name)
        return found
    if sampler.reads:
        return None
    ranking = rank(data.name, data.sampler.name, sampler, images, data.split_seed)
    if folder is not None:
        check_order(ranking, folder, name)
    return ranking


def _folder(data: DataConfig) -> Path | None:
    if data.splits == COMPUTE:
        return None
    if data.splits is None:
        return shipped()
    folder = Path(data.splits).expanduser()
    if not folder.is_dir():
        raise SettingError("data.splits", f"'{folder}'", "a folder of split files, or none")
    return folder


def _check_is(found: Ranking, data: DataConfig, sampler: Sampler, name: str) -> None:
    settings = sampler.settings.model_dump(mode="json")
    asked = (data.name, data.sampler.name, settings, data.split_seed)
    holds = (found.dataset, found.sampler, dict(found.settings), found.seed)
    if holds != asked:
        raise DataError(f"{name}: holds the order of {holds}, not of {asked}")


def choose_subset(config: RunConfig, data: DataSplits, ranking: Ranking | None = None) -> Subset:
    """The training and validation examples of a run.

    Args:
        config: The settings.
        data: The images.
        ranking: The order; found or computed if None. Where that takes a teacher, the subset is a
            stand-in of equal size with an empty hash, good for checking sizes and shapes.
    """
    settings, train = config.data, data.train
    imported = settings.split_file is not None
    sampler = make_sampler(settings)
    if settings.shots is not None and not imported and not sampler.balanced:
        name = settings.sampler.name
        accepted = f"a class-balanced sampler, or n or fraction instead of shots for '{name}'"
        raise SettingError("data.shots", settings.shots, accepted)
    sampler.check(data, settings.shots, settings.val)
    ranking = ranking or known_ranking(config, train) or _stand_in(config, train)
    size = subset_size(
        train.targets, train.num_classes, settings.fraction, settings.shots, settings.n
    )
    if settings.shots is not None and imported:
        check_balance(train.targets[ranking.order[:size]], settings.shots, ranking.source)
    return take(ranking, size, settings.val, train.targets, train.num_classes)


def _stand_in(config: RunConfig, images: ImageSet) -> Ranking:
    plain = rank(config.data.name, "stratified", Stratified(), images, 0)
    return Ranking(plain.dataset, "", {}, 0, plain.order, plain.fingerprint, "")


def ranking_run(config: RunConfig) -> RunConfig:
    """The run whose teacher ranks the examples: this one, or an assistant's above it.

    A teacher that learned from the subset itself cannot have chosen it; in a chain the first
    teacher that saw all data does, so that all networks of the chain share one subset.

    Raises:
        SettingError: If no teacher above saw more than the subset.
    """
    run = config
    while (teacher := run.teacher) is not None:
        if teacher.data == "full" or teacher.checkpoint is not None:
            break
        if teacher.teacher is None:
            accepted = f"'full': the sampler {config.data.sampler.name} chooses by its outputs"
            raise SettingError("teacher.data", "'subset'", accepted)
        run = run.teacher_run()
    return run


@torch.no_grad()
def fill_pool(
    net: nn.Module,
    images: ImageSet,
    reads: frozenset[str],
    device: torch.device,
    workers: int = 2,
) -> Pool:
    """Labels and the teacher's outputs for all images, in eval mode, without augmentation.

    Args:
        net: The teacher.
        images: N training images.
        reads: ``embedding``, ``logits`` or both.
        device: Where the network runs.
        workers: Decoding processes for images on disk.

    Returns:
        A pool on the CPU with float32 embeddings (N, D) and logits (N, K), as far as read.
    """
    net.eval()
    taps: dict[str, Tensor] = {}
    for inputs, where in chunks(images, device, workers=workers):
        found = net(inputs, reads)
        for name in reads:
            rows = getattr(found, name).float().cpu()
            if name not in taps:  # one array that is filled: no second copy at the end
                taps[name] = torch.empty(len(images), rows.shape[1])
            taps[name][where] = rows
    return Pool(images.targets, taps.get("embedding"), taps.get("logits"))
