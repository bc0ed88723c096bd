"""One process without Fabric: the same numbers, bit for bit, as with it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.train.alone import Alone
from fskd.train.devices import launch
from fskd.train.plain_optim import SGD, Adam
from fskd.types import Batch, Outputs


class Task(nn.Module):
    """Takes and gives nested values of all kinds that the loop's module does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = FeatureNet(build("cnn_tiny", 3, 1))
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Batch, teacher: Outputs, read: frozenset[str]) -> dict[str, Tensor]:
        self.seen = [batch.inputs.dtype, batch.targets.dtype, teacher.logits.dtype]
        out = self.net(batch.inputs, read)
        return {
            "ce": nn.functional.cross_entropy(out.logits, batch.targets),
            "fit": (out.logits - teacher.logits).square().mean(),
            "size": out.embedding.square().mean(),
        }


def numbers(fabric: Any) -> tuple[list[Tensor], list[torch.dtype]]:
    """Losses, gradients and weights of three steps."""
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), 0.1, momentum=0.9, nesterov=True)
    wrapped, stepping = fabric.setup(task, optimizer)
    rng = torch.Generator().manual_seed(1)
    found: list[Tensor] = []
    for _ in range(3):
        images = torch.randn(8, 1, 8, 8, generator=rng)
        targets = torch.randint(0, 3, (8,), generator=rng)
        with fabric.autocast(), torch.no_grad():
            found.append(task.net(images).logits)
        batch, teacher = Batch(images, targets, targets), Outputs(torch.randn(8, 3, generator=rng))
        losses = wrapped(batch, teacher, frozenset({"logits", "embedding"}))
        fabric.backward(torch.stack(list(losses.values())).sum())
        found.append(fabric.clip_gradients(wrapped, stepping, max_norm=0.5))
        found += [*losses.values(), *(p.grad.clone() for p in task.parameters())]
        stepping.step()
        stepping.zero_grad()
        found += [p.detach().clone() for p in task.parameters()]
    return found, task.seen


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_numbers_are_fabrics(precision: Any) -> None:
    from lightning_fabric import Fabric

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, their_types = numbers(Fabric(accelerator="cpu", devices=1, precision=precision))
    ours, our_types = numbers(Alone(torch.device("cpu"), precision))
    assert our_types == their_types
    assert (our_types[0] == torch.bfloat16) == (precision == "bf16-mixed")
    assert [value.dtype for value in ours] == [value.dtype for value in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_has_no_others() -> None:
    alone = launch(Runtime(device="cpu"))
    assert isinstance(alone, Alone)
    assert (alone.is_global_zero, alone.global_rank, alone.world_size) == (True, 0, 1)
    alone.barrier()
    assert alone.broadcast("value") == "value"
    assert torch.equal(alone.all_reduce(torch.ones(2), reduce_op="sum"), torch.ones(2))
    with pytest.raises(SettingError):
        launch(Runtime(device="cpu:1"))


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (Adam, torch.optim.Adam, {}),
    ],
)
def test_optimisers_are_torchs(ours: Any, theirs: Any, settings: dict[str, Any]) -> None:
    """Equal steps; states go from one to the other; no gradient graph is left."""
    weights = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    both = [
        kind([{"params": [weight], "peak": 0.1}], 0.1, **settings)
        for kind, weight in zip((ours, theirs), weights, strict=True)
    ]
    for _ in range(2):
        for step in range(3):
            for optimizer, weight in zip(both, weights, strict=True):
                (weight * torch.arange(5.0) * step).sin().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert torch.equal(*weights)
        assert [weight.grad for weight in weights] == [None, None]
        states = [optimizer.state_dict() for optimizer in both]
        assert str(states[0]) == str(states[1])
        for optimizer, state in zip(both, reversed(states), strict=True):
            optimizer.load_state_dict(state)
    assert isinstance(both[0], theirs)
