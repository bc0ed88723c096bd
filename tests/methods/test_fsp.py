"""FSP against loops over pixels and channel pairs, and its two phases."""

import pytest
import torch
from speaking import joint, speak

from fskd.errors import SettingError
from fskd.losses.features import fsp_matrix
from fskd.methods.fsp import flow_loss
from fskd.methods.needs import check_needs
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random maps in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_flow(first: torch.Tensor, second: torch.Tensor, i: int, j: int) -> float:
    """Mean over pixels of first_i * second_j for one row of equal sizes."""
    _, height, width = first.shape
    products = [
        first[i, h, w].item() * second[j, h, w].item() for h in range(height) for w in range(width)
    ]
    return sum(products) / len(products)


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 3, 2), (3, 4, 4)])
def test_slow_twin(rows: int, height: int, width: int) -> None:
    """Sum over neighbouring stages of the mean squared difference."""
    sizes = [(2, height, width), (3, height, width), (2, height, width)]
    student = [maps(rows, *size, seed=i) for i, size in enumerate(sizes)]
    teacher = [maps(rows, *size, seed=9 + i) for i, size in enumerate(sizes)]
    total = 0.0
    for k in range(2):
        squares = [
            (
                slow_flow(student[k][b], student[k + 1][b], i, j)
                - slow_flow(teacher[k][b], teacher[k + 1][b], i, j)
            )
            ** 2
            for b in range(rows)
            for i in range(sizes[k][0])
            for j in range(sizes[k + 1][0])
        ]
        total += sum(squares) / len(squares)
    assert flow_loss(student, teacher).item() == pytest.approx(total, rel=1e-10)


def test_pooling_and_limits() -> None:
    """The larger map is averaged; equal networks give 0."""
    large, small = maps(2, 3, 4, 4), maps(2, 2, 2, 2, seed=1)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(fsp_matrix(large, small), fsp_matrix(pooled, small))
    assert flow_loss([large, small], [large, small]) == 0


def test_full_precision_under_autocast() -> None:
    """The product is not rounded to bfloat16."""
    first, second = maps(2, 3, 4, 4).float(), maps(2, 2, 4, 4, seed=1).float()
    expected = fsp_matrix(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsp_matrix(first, second), expected)


def test_gradcheck() -> None:
    """Gradients reach both maps of a pair."""
    teacher = [maps(2, 2, 4, 4, seed=3), maps(2, 3, 2, 2, seed=4)]
    student = tuple(
        x.requires_grad_(True) for x in (maps(2, 2, 4, 4, seed=5), maps(2, 3, 2, 2, seed=6))
    )
    assert torch.autograd.gradcheck(lambda a, b: flow_loss([a, b], teacher), student)


def net(*channels: int) -> TapShapes:
    """A network with stages of these widths."""
    stages = tuple((c, 4, 4) for c in channels)
    return TapShapes((4,), (3,), stages, stages, (2, 4, 4))


@pytest.mark.parametrize(("student", "teacher"), [((2, 4), (2, 8)), ((2, 4), (2,)), ((), ())])
def test_unequal_channels_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """The error lists the channels of both."""
    shapes = Shapes(4, 8, net(*student), net(*teacher), torch.arange(8) % 4)
    with pytest.raises(SettingError, match=r"equal channels|at least 1 behind the stem"):
        check_needs("fsp", joint("fsp", shapes).methods["fsp"].needs, shapes)


def test_phases() -> None:
    """The first phase trains features on the flow alone; the second has no flow term."""
    run = joint("fsp", Shapes(4, 8, net(2, 4), net(2, 4), torch.arange(8) % 4))
    first, second = run.stretches()
    assert (first.name, first.share, first.trains) == ("fsp", 0.125, ("student.features",))
    assert first.objective is None
    assert not second.asks
    assert not second.generated
    labels = torch.zeros(2, dtype=torch.long)
    outputs = Outputs(torch.zeros(2, 4), stem=torch.rand(2, 2, 4, 4))
    outputs = outputs._replace(stages=(torch.rand(2, 2, 4, 4), torch.rand(2, 4, 4, 4)))
    batch = Batch(torch.zeros(2, 1, 2, 2), labels, labels)
    for phase, names in (("fsp", {"fsp"}), ("main", {"ce"})):
        said = speak(run, batch, Progress(phase), student=outputs, teacher=outputs)
        assert said.keys() == names
