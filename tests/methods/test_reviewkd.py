"""ReviewKD: distance and fusion number by number, the ramp, and unlike networks."""

import math
from typing import Any

import pytest
import torch
from recorded import maps
from steps import alone, batch, joint, net, shapes, speak, weights
from torch import Tensor

from fskd.methods.reviewkd import Fusion, ReviewKD, context_loss
from fskd.types import Outputs, Progress


def slow_means(one: Tensor, size: int) -> list[float]:
    """Means on a grid of size x size; the map's sides are multiples of it."""
    height, width = one.shape[2] // size, one.shape[3] // size
    return [
        one[b, c, i * height : (i + 1) * height, j * width : (j + 1) * width].mean().item()
        for b in range(len(one))
        for c in range(one.shape[1])
        for i in range(size)
        for j in range(size)
    ]


@pytest.mark.parametrize(
    ("side", "grids"),
    [(8, {4: 0.5, 2: 0.25, 1: 0.125}), (4, {2: 0.5, 1: 0.25}), (2, {1: 0.5}), (1, {})],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_slow_distance(side: int, grids: dict[int, float], rows: int) -> None:
    """Halved only for grids that are used; divided by all weights."""
    student, teacher = maps(rows, 2, side, side), maps(rows, 2, side, side, seed=1)
    total = (student - teacher).square().mean().item()
    for size, weight in grids.items():
        pairs = zip(slow_means(student, size), slow_means(teacher, size), strict=True)
        squares = [(x - y) ** 2 for x, y in pairs]
        total += weight * sum(squares) / len(squares)
    expected = total / (1 + sum(grids.values()))
    assert context_loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_gradcheck_and_constant_teacher() -> None:
    """Through all grids; no gradient for the teacher."""
    teacher = maps(2, 2, 5, 5, seed=1).requires_grad_(True)
    student = maps(2, 2, 5, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: context_loss(s, teacher), (student,))
    context_loss(student, teacher).backward()
    assert teacher.grad is None


def test_slow_fusion() -> None:
    """Shares of both inputs pixel by pixel, nearest neighbours, running statistics."""
    torch.manual_seed(0)
    level = Fusion((3, 2, 2), (5, 4, 4), 2, False).double().eval()
    x, deeper = maps(1, 3, 2, 2), maps(1, 2, 1, 1, seed=1)
    guess, handed = level(x, deeper)
    assert level.attention is not None
    weight, bias = level.attention.weight[:, :, 0, 0].tolist(), level.attention.bias.tolist()
    first = level.conv1[0].weight[:, :, 0, 0].tolist()
    for h in range(4):
        for w in range(4):
            values = x[0, :, h // 2, w // 2].tolist()
            own = [sum(a * v for a, v in zip(row, values, strict=True)) for row in first]
            own = [v / math.sqrt(1 + 1e-5) for v in own]
            both = own + deeper[0, :, 0, 0].tolist()
            shares = [
                1 / (1 + math.exp(-sum(a * v for a, v in zip(row, both, strict=True)) - b))
                for row, b in zip(weight, bias, strict=True)
            ]
            for c in range(2):
                expected = shares[0] * own[c] + shares[1] * both[2 + c]
                assert handed[0, c, h, w].item() == pytest.approx(expected, rel=1e-9)
    assert guess.shape == (1, 5, 4, 4)


def built(**settings: Any) -> tuple[Any, dict[str, Outputs]]:
    """The method for unlike networks, and what they gave for four rows."""
    sizes = {"student": ((3, 8, 6), (6, 3, 3)), "teacher": ((4, 4, 4), (9, 2, 5))}
    dims = {"student": 6, "teacher": 9}
    nets = [net(dim=dims[name], stages=one) for name, one in sizes.items()]
    method = joint("reviewkd", shapes(*nets), **settings)
    outputs = {}
    for name, one in sizes.items():
        drawn = tuple(maps(4, *shape, seed=i).float() for i, shape in enumerate(one))
        embedding = maps(4, dims[name]).float()
        outputs[name] = Outputs(maps(4, 4).float(), embedding, drawn, drawn)
    return method, outputs


def test_ramp_and_unlike_networks() -> None:
    """The weight rises in the first twelfth; every parameter gets a gradient."""
    method, nets = built(weight=2.0)
    found = {
        fraction: speak(method, nets, batch(4), progress=Progress(fraction=fraction))
        for fraction in (0.0, 1 / 24, 0.5)
    }
    of_weight = [weights(one)["reviewkd"] for one in found.values()]
    assert of_weight == pytest.approx([0.0, 1.0, 2.0])
    found[0.5]["reviewkd"].value.backward()
    own = alone(method)
    assert isinstance(own, ReviewKD)
    assert all(p.grad is not None and p.grad.any() for p in own.parameters())
    at_once = speak(built(warmup=0.0)[0], nets, batch(4))
    assert weights(at_once)["reviewkd"] == 1.0


def test_width_and_one_row() -> None:
    """Between levels at most so wide; a single row has no batch statistics."""
    method, nets = built(max_width=2)
    own = alone(method)
    assert isinstance(own, ReviewKD)
    assert {level.conv1[0].out_channels for level in own.levels} == {2}
    few = {name: one.rows(slice(0, 1)) for name, one in nets.items()}
    assert weights(speak(method, few, batch(1))) == {"ce": 1.0}
