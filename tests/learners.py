"""Small learners, their rows, and updates on one teacher pass."""

from collections.abc import Sequence
from typing import Any

import torch
from tiny import SIZE, tiny

from fskd.methods.base import methods
from fskd.methods.compose import Joint, join
from fskd.methods.words import Term
from fskd.models.taps import FeatureNet
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.alone import Alone
from fskd.train.step import Learner, ask
from fskd.types import Batch, Progress, Shapes

K, N, ROWS = 4, 16, 8
CPU = torch.device("cpu")
FABRIC = Alone(CPU)
OPTIM = OptimConfig(lr=0.05)


def small(seed: int) -> FeatureNet:
    return tiny(4, (6, 2, 1), (8, 2, 1), seed=seed)


def large(seed: int = 9) -> FeatureNet:
    return tiny(6, (8, 2, 2), (12, 2, 1), seed=seed)


def rows(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    indices = torch.randperm(N, generator=rng)[:ROWS]
    return Batch(torch.randn(ROWS, *SIZE, generator=rng), indices % K, indices)


def made(names: str, shapes: Shapes, **settings: Any) -> Joint:
    parts = [(name, methods.get(name).Settings(**settings)) for name in names.split("+")]
    return join(parts).build(shapes)


def train(learners: Sequence[Learner], source: Teacher, steps: int = 5) -> list[dict[str, Term]]:
    """Updates on one teacher pass a step; every learner's last terms."""
    last: list[dict[str, Term]] = []
    for step in range(steps):
        batch = rows(step)
        known = ask(source, batch, [one.stretch for one in learners], FABRIC)
        progress = Progress("main", step / steps, step)
        last = [
            one.update(batch, own, progress, 0.7) for one, own in zip(learners, known, strict=True)
        ]
    return last
