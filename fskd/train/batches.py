"""From a step number to the rows that the networks see: load, generate, divide, add views."""

from collections.abc import Iterator

import torch

from fskd.data.loader import Loader
from fskd.generators.base import Generator
from fskd.methods.compose import Joint
from fskd.methods.plan import Stretch
from fskd.seeding import torch_generator
from fskd.types import Batch


class BatchMaker:
    """Makes the batch of any step; the same step always gives the same rows.

    With several processes the joint batch is made on each of them and then divided, so that they
    see exactly the rows that one process would; images on disk are divided before they are read.

    Args:
        loader: Real rows.
        generator: Generated rows, or None.
        method: Asked for extra views.
        n_generated: Rows to generate a step.
        seed: Run seed.
        rank: Number of this process.
        world: Number of processes.
        unlabelled: Unlabelled rows, one loader for each view of them.
    """

    def __init__(
        self,
        loader: Loader,
        generator: Generator | None,
        method: Joint,
        n_generated: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        unlabelled: tuple[Loader, ...] = (),
    ) -> None:
        self.loader, self.generator, self.method = loader, generator, method
        self.n_generated, self.seed = n_generated, seed
        self.rank, self.world, self.unlabelled = rank, world, unlabelled

    def batch(self, step: int, stretch: Stretch) -> Batch:
        """Rows of one step for this process; of other than real rows those the phase reads."""
        batch = self.loader.batch(step)
        if self.unlabelled and stretch.unlabelled:
            rows = [self._hidden(loader, step) for loader in self.unlabelled]
            batch = with_rows(batch, "unlabelled", torch.cat(rows))
        if self.generator is not None and stretch.generated:
            rank, world = (self.rank, self.world) if self.loader.sharded else (0, 1)
            rng = torch_generator(self.seed, "generator", step, rank)
            turn = torch_generator(self.seed, "turn", step)
            mixed = stretch.objective is not None and stretch.objective.mixed_weight > 0
            batch = self.generator(batch, rng, self.n_generated // world, turn, mixed)
        if self.world > 1 and not self.loader.sharded:
            batch = shard(batch, self.rank, self.world)
        rng = torch_generator(self.seed, "views", step, self.rank)
        batch = self.method.views(batch, rng, stretch)
        if stretch.input_grad:
            batch = batch._replace(inputs=batch.inputs.detach().requires_grad_())
        return batch

    def _hidden(self, loader: Loader, step: int) -> torch.Tensor:
        """Unlabelled images, divided among the processes if the real ones are."""
        images = loader.batch(step).inputs
        apart = self.loader.sharded and not loader.sharded
        return images[self.rank :: self.world] if apart else images

    def epoch(self, step: int) -> int:
        """Passes over the subset that are complete before this step."""
        return self.loader.stream.epoch(step)

    def one_pass(self, epoch: int) -> Iterator[Batch]:
        """Real rows of the steps that begin in an epoch."""
        for step in self._begun_in(epoch):
            yield self.loader.batch(step)

    def pass_rows(self, epoch: int) -> int:
        """How many rows ``one_pass`` gives, over all processes."""
        return len(self._begun_in(epoch)) * self.loader.stream.rows

    def _begun_in(self, epoch: int) -> range:
        stream = self.loader.stream
        first = -(-epoch * stream.n // stream.rows)
        return range(first, max(-(-(epoch + 1) * stream.n // stream.rows), first + 1))


def with_rows(batch: Batch, name: str, rows: torch.Tensor) -> Batch:
    """The batch with rows of a name behind it."""
    start = len(batch.inputs)
    parts = {**batch.parts, name: slice(start, start + len(rows))}
    return batch._replace(inputs=torch.cat([batch.inputs, rows]), parts=parts)


def shard(batch: Batch, rank: int, world: int) -> Batch:
    """Every ``world``-th row of every kind of a joint batch.

    Example:
        >>> made = {"generated": slice(4, 6)}
        >>> joint = Batch(torch.zeros(6, 1, 2, 2), torch.arange(4), torch.arange(4), made)
        >>> shard(joint, 1, 2).targets.tolist(), len(shard(joint, 1, 2).inputs)
        ([1, 3], 3)
    """
    own = slice(rank, None, world)
    mine = batch._replace(
        inputs=batch.inputs[: batch.n_real][own],
        targets=batch.targets[own],
        indices=batch.indices[own],
        parts={},
        parents=None if batch.parents is None else batch.parents[own],
        shares=None if batch.shares is None else batch.shares[own],
    )
    for name, rows in batch.parts.items():
        mine = with_rows(mine, name, batch.inputs[rows][own])
    return mine
