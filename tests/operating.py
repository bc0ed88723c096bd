"""What tests of procedures on networks share: a teacher trained for a moment, and plain hands."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from fskd.data.datasets.base import load
from fskd.models.taps import FeatureNet
from fskd.teachers.base import Teacher

SIZE = (1, 8, 8)


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images in [0, 1] with labels."""
    data = load("digits")
    train, test = (torch.as_tensor(p.images).float() / 255 for p in (data.train, data.test))
    return train, data.train.targets, test, data.test.targets


def trained(net: nn.Module, steps: int = 60) -> FeatureNet:
    """The network after some updates on digits, seconds' worth, in eval mode."""
    images, targets, *_ = digits()
    optimizer, rng = torch.optim.Adam(net.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), targets[rows]).backward()
        optimizer.step()
    return FeatureNet(net.eval())


@torch.no_grad()
def accuracy(logits: Callable[[Tensor], Tensor]) -> float:
    """On the test digits."""
    *_, images, targets = digits()
    return float((logits(images).argmax(1) == targets).float().mean())


class PlainHands:
    """Adam on the first training digits; ``train`` does nothing."""

    def __init__(
        self, student: FeatureNet, teacher: FeatureNet, steps: int, n: int = 64, lr: float = 1e-2
    ) -> None:
        self.student, self.teacher, self.size = student, Teacher(teacher, torch.device("cpu")), SIZE
        self.steps, self.rng, self.lr = steps, torch.Generator().manual_seed(0), lr
        self.rows = digits()[0][:n]
        self.notes: dict[str, Any] = {}
        self.lines: list[str] = []
        self.descents: list[tuple[int, list[nn.Parameter], float | None]] = []
        self.at_train: Callable[[], object] = lambda: None

    def images(self) -> Iterator[Tensor]:
        yield self.rows[:24]
        yield self.rows[24:]

    def train(self) -> None:
        self.at_train()

    def descend(
        self,
        loss: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        steps: int,
        lr: float | None = None,
    ) -> float:
        self.descents.append((steps, list(parameters), lr))
        optimizer = torch.optim.Adam(parameters, lr=lr or self.lr)
        value = torch.zeros(())
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(self.rows[step % 2 :: 2])
            value.backward()
            optimizer.step()
        return float(value.detach())

    def say(self, line: str) -> None:
        self.lines.append(line)

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value


def copied(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: cast(Tensor, value).clone() for name, value in net.state_dict().items()}


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters and buffers that are not what they were."""
    now = net.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, now[name])}
