"""From a step number to the rows that the networks see: load, generate, divide, add views."""

from collections.abc import Iterator

import torch

from fskd.data.loader import Loader
from fskd.generators.base import Generator
from fskd.methods.base import Method, Reads
from fskd.seeding import torch_generator
from fskd.types import Batch, EpochContext, Progress


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
    """

    def __init__(
        self,
        loader: Loader,
        generator: Generator | None,
        method: Method,
        n_generated: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.loader, self.generator, self.method = loader, generator, method
        self.n_generated, self.seed = n_generated, seed
        self.rank, self.world = rank, world

    def batch(self, progress: Progress, reads: Reads) -> Batch:
        """Rows of one step for this process; generated ones only if the phase reads them."""
        step = progress.step
        batch = self.loader.batch(step)
        if self.generator is not None and reads.generated:
            rank, world = (self.rank, self.world) if self.loader.sharded else (0, 1)
            rng = torch_generator(self.seed, "generator", step, rank)
            turn = torch_generator(self.seed, "turn", step)
            batch = self.generator(batch, rng, self.n_generated // world, turn)
        if self.world > 1 and not self.loader.sharded:
            batch = shard(batch, self.rank, self.world)
        rng = torch_generator(self.seed, "views", step, self.rank)
        views = self.method.views(batch, rng, progress)
        if views is not None:
            batch = batch._replace(inputs=torch.cat([batch.inputs, views]))
        if reads.input_grad:
            batch = batch._replace(inputs=batch.inputs.detach().requires_grad_())
        return batch

    def epoch(self, step: int) -> int:
        """Passes over the subset that are complete before this step."""
        return self.loader.stream.epoch(step)

    def on_epoch(self, context: EpochContext) -> None:
        """Tells method and generator that an epoch begins."""
        self.method.on_epoch(context)
        if self.generator is not None:
            self.generator.on_epoch(context)

    def one_pass(self, epoch: int) -> Iterator[Batch]:
        """Real rows of the steps that begin in an epoch."""
        stream = self.loader.stream
        first = -(-epoch * stream.n // stream.rows)
        for step in range(first, max(-(-(epoch + 1) * stream.n // stream.rows), first + 1)):
            yield self.loader.batch(step)


def shard(batch: Batch, rank: int, world: int) -> Batch:
    """Every ``world``-th real row and generated row of a joint batch.

    Example:
        >>> joint = Batch(torch.zeros(6, 1, 2, 2), torch.arange(4), torch.arange(4), 2)
        >>> shard(joint, 1, 2).targets.tolist(), len(shard(joint, 1, 2).inputs)
        ([1, 3], 3)
    """
    real, made = batch.inputs[: batch.n_real], batch.inputs[batch.n_real :]
    own = slice(rank, None, world)
    return Batch(
        torch.cat([real[own], made[own]]),
        batch.targets[own],
        batch.indices[own],
        len(made[own]),
        None if batch.mixed_targets is None else batch.mixed_targets[own],
        None if batch.mixed_weights is None else batch.mixed_weights[own],
    )
