"""What makes the batches of a prepared run, in one process or in several."""

import torch

from fskd.data.loader import make_loader
from fskd.errors import SettingError
from fskd.runs.prepare import Job
from fskd.seeding import derive
from fskd.train.batches import BatchMaker


def batch_maker(
    job: Job,
    device: torch.device,
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
    most: int | None = None,
) -> BatchMaker:
    """What makes the batches of a run.

    Args:
        job: The run.
        device: Where batches are made.
        workers: Decoding processes for images on disk.
        rank: Number of this process.
        world: Number of processes.
        most: Only so many of the images are used; all if None.
    """
    hidden, rows, some = job.unlabelled, job.rows, job.subset.train[:most]
    train, moves, seed = job.data.train, job.config.data.augment, job.config.seed
    loader = make_loader(train, some, rows.real, moves, seed, device, workers, rank, world)
    # Rows that are divided only after they were put together are the same in every process.
    own = (rank, world) if loader.sharded else (0, 1)
    stream = derive(seed, "unlabelled")
    views = () if hidden is None else tuple(
        make_loader(
            hidden.source, hidden.subset[:most], rows.unlabelled, moves,
            stream, device, workers, *own, view,
        )
        for view in range(rows.views)
    )  # fmt: skip
    return BatchMaker(loader, job.generator, job.method, rows.generated, seed, rank, world, views)


def check_processes(job: Job, world: int) -> None:
    """SettingError unless the run can be divided among ``world`` processes and stay the same.

    Every process must get the same number of rows of every kind, or terms and their means differ.
    """
    if world == 1:
        return
    made = job.rows.generated if job.generator else 0
    rows = {"real": job.rows.real, "unlabelled": job.rows.unlabelled, "generated": made}
    for kind, n in rows.items():
        if n % world:
            given = f"{job.config.optim.batch_size} ({n} {kind} rows)"
            accepted = f"{kind} rows that {world} processes can share equally"
            raise SettingError("optim.batch_size", given, accepted)
    for name, method in job.method.methods.items():
        if method.needs.one_process:
            accepted = f"one process instead of {world}: it has memories or players"
            raise SettingError("method", f"'{name}'", accepted)
    if job.generator is not None and not isinstance(job.data.train.images, torch.Tensor):
        pairs = getattr(job.generator.settings, "pairs", "all")
        if pairs != "all":
            accepted = f"'all' with {world} processes and images on disk"
            raise SettingError("generator.pairs", f"'{pairs}'", accepted)
