"""Another mode for a moment: what was seen leaves no trace, not even after an error."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fskd.models.modes import in_mode

Modes = Literal["eval", "batch"]


def network() -> nn.Sequential:
    """Batch norm, dropout, and a batch norm without running statistics."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.BatchNorm1d(4),
    )


def images(seed: int = 0) -> Tensor:
    return 3 + torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def state(net: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.clone() for name, value in net.state_dict().items()}
    for name, module in net.named_modules():
        found[f"{name} mode"] = module.training
        found[f"{name} tracks"] = getattr(module, "track_running_stats", None)
    return found


def unmoved(net: nn.Module, before: dict[str, Any]) -> None:
    after = state(net)
    assert after.keys() == before.keys()
    assert any("num_batches_tracked" in name for name in after)
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name


def train(net: nn.Sequential) -> None:
    net.train()


def evaluate(net: nn.Sequential) -> None:
    net.eval()


def mixed(net: nn.Sequential) -> None:
    net.train()
    net[1].eval()


@pytest.mark.parametrize("start", [train, evaluate, mixed])
@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_leaves_no_trace(mode: Modes, start: Callable[[nn.Sequential], None]) -> None:
    net = network()
    net.train()(images(1))
    start(net)
    before = state(net)
    with in_mode(net, mode):
        net(images())
    unmoved(net, before)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_restores_after_an_error(mode: Modes) -> None:
    net = network()
    mixed(net)
    before = state(net)
    with pytest.raises(RuntimeError), in_mode(net, mode):
        net(images()[:, :, 1:])
    unmoved(net, before)


def test_eval_uses_running_statistics() -> None:
    net = network()
    net.train()(images(1))
    expected = net.eval()(images())
    net.train()
    with in_mode(net, "eval"):
        assert torch.equal(net(images()), expected)


def test_batch_uses_statistics_of_the_batch_and_no_dropout() -> None:
    net = network()
    x = images()
    maps = net[0](x)
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), False, keepdim=True)
    hidden = net[4]((maps - mean).div((var + 1e-5).sqrt()).flatten(1))
    for _ in range(2):
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, False) + 1e-5).sqrt()
    net.eval()
    with in_mode(net, "batch"):
        torch.testing.assert_close(net(x), hidden, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x), hidden, atol=1e-2)


def test_nested() -> None:
    """The inner mode ends with its block."""
    net = network().train()
    with in_mode(net, "eval"):
        with in_mode(net, "batch"):
            assert net[1].training
            assert not net[2].training
        assert not net[1].training
    assert net[1].training
    assert net[1].track_running_stats
