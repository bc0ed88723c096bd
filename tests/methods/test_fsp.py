"""FSP against loops over pixels and channel pairs, and its two phases."""

import pytest
import torch
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.errors import SettingError
from fskd.losses.features import fsp_matrix
from fskd.methods.fsp import flow_loss
from fskd.methods.needs import check_needs
from fskd.types import Outputs


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


@pytest.mark.parametrize(("student", "teacher"), [((2, 4), (2, 8)), ((2, 4), (2,)), ((), ())])
def test_unequal_channels_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """The error lists the channels of both; a flow needs a stage behind the stem."""
    ours, theirs = (net(stages=tuple((c, 4, 4) for c in widths)) for widths in (student, teacher))
    reason = "equal channels" if student and len(student) == len(teacher) else "stages"
    with pytest.raises(SettingError, match=reason):
        check_needs("fsp", alone(joint("fsp")).needs, shapes(ours, theirs))


def test_phases() -> None:
    """The first phase trains features on the flow alone; the second has no flow term."""
    method = joint("fsp")
    first, second = method.stretches()
    assert (first.name, first.share, first.trains) == ("fsp", 0.125, ("student.features",))
    assert first.generated
    assert not second.asks
    assert not second.generated
    sizes = [(2, 4, 4), (2, 4, 4), (4, 4, 4)]
    ours, theirs = (
        [maps(2, *size, seed=3 * i + k) for k, size in enumerate(sizes)] for i in (0, 1)
    )
    outputs = [Outputs(maps(2, 4), stages=tuple(x[1:]), stem=x[0]) for x in (ours, theirs)]
    nets = dict(zip(("student", "teacher"), outputs, strict=True))
    flow = speak(method, nets, batch(2), "fsp")
    assert weights(flow) == {"fsp": 1.0}
    torch.testing.assert_close(flow["fsp"].value, flow_loss(ours, theirs))
    assert weights(speak(method, nets, batch(2))) == {"ce": 1.0}
