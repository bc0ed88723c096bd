"""MiR: the last map is learned, the head is the teacher's, labels are not looked at."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from few import Trained
from safetensors.torch import load_file
from torch import nn

from fskd.errors import SettingError
from fskd.methods.base import methods
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.procedures.mimic import mimic_loss
from fskd.procedures.mir import MiR
from fskd.types import Outputs

RAW = {"student": "resnet8", "method": "mir"}


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_loops(scale: float) -> None:
    """Mean of squares over rows, channels and pixels of what is left by the ReLU."""
    rng = torch.Generator().manual_seed(0)
    s, t = (scale * torch.randn(2, 3, 2, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    s.requires_grad_()
    total, slopes = 0.0, []
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        gap = max(a, 0.0) - max(b, 0.0)
        total += gap**2 / 12
        slopes.append(2 * gap / 12 if a > 0 else 0.0)
    loss = mimic_loss(Outputs(pre=(s,)), Outputs(pre=(t.requires_grad_(),)))
    loss.backward()
    assert loss.item() == pytest.approx(total)
    assert s.grad.flatten().tolist() == pytest.approx(slopes)
    assert t.grad is None


def test_better_than_the_cut_student_with_the_teachers_head(trained: Trained) -> None:
    result = trained.run(RAW)
    assert result.top1 > trained.accuracy(trained.cut("resnet8")) + 0.1
    weights = load_file(Path(result.path) / "student.safetensors")
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(weights[name], trained.teacher.net.state_dict()[name])
    assert "mir" in result.final_loss
    assert not any(methods.get("mir").Settings().objective().weights.values())  # no labels
    assert result.procedure["cut"][0] == "9 of 15 layers with filters"


def test_begins_at_the_cut_student(trained: Trained) -> None:
    """One step at a rate that moves nothing."""
    result = trained.run({**RAW, "budget": {"steps": 1}, "optim": {"lr": 1e-12}})
    weights = load_file(Path(result.path) / "student.safetensors")
    expected = trained.cut("resnet8").net
    for name, value in expected.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), msg=name)


@pytest.mark.parametrize(
    ("name", "size", "good"),
    [
        ("resnet8", (1, 8, 8), True), ("wrn_16_1", (1, 16, 16), True), ("vgg8", (1, 16, 16), True),
        ("cnn_tiny", (1, 8, 8), True), ("lenet5", (1, 28, 28), False),
        ("mobilenetv2", (1, 32, 32), False),
    ],
)  # fmt: skip
def test_only_networks_that_pool_their_last_map(
    name: str, size: tuple[int, int, int], good: bool
) -> None:
    nets = [FeatureNet(build(name, 10, 1)) for _ in range(2)]
    method = MiR(methods.get("mir").Settings())
    if good:
        method.check(*nets, size)
    else:
        with pytest.raises(SettingError, match="not what is pooled"):
            method.check(*nets, size)


def test_unequal_widths_are_refused(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = command("--method", "mir", folder=tmp_path)
    assert code == 2
    assert "a student whose last map is 32x2x2 and a teacher with 96x2x2" in err
    assert not any(tmp_path.iterdir())


def test_all_but_the_head_is_trained(trained: Trained) -> None:
    result = trained.run(RAW)
    weights = load_file(Path(result.path) / "student.safetensors")
    moved = {
        name.rpartition(".")[0]
        for name, value in trained.cut("resnet8").net.named_parameters()
        if not torch.equal(weights[name], value)
    }
    layers = nn.Conv2d, nn.BatchNorm2d
    expected = {n for n, m in build("resnet8", 10, 1).named_modules() if isinstance(m, layers)}
    assert moved == expected
