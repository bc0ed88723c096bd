"""Jacobian matching: gradients by finite differences, second order, and which rows count."""

import math
from typing import Any

import pytest
import torch
from recorded import maps
from steps import batch, joint, speak, weights
from torch import Tensor, nn

from fskd.methods.jacobian import jacobian_loss, slopes
from fskd.types import Outputs


def network(width: int, seed: int) -> nn.Sequential:
    """A smooth network on images of 1x2x3, without batch statistics."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).double()


def slow_slope(net: nn.Module, image: Tensor, label: int) -> list[float]:
    """Central differences pixel by pixel, at unit length."""
    found, net = [], net.requires_grad_(False)
    for i in range(image.numel()):
        moved = torch.zeros(image.numel(), dtype=torch.float64)
        moved[i] = 1e-5
        up, down = (net((image + sign * moved.view_as(image))[None])[0, label] for sign in (1, -1))
        found.append(float(up - down) / 2e-5)
    length = math.sqrt(sum(v * v for v in found))
    return [v / length for v in found]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("reduction", ["row", "element"])
def test_slow_twin(rows: int, reduction: Any) -> None:
    """Unlike networks; all rows seen, of which the last is generated and does not count."""
    ours, theirs = network(3, 0), network(5, 1)
    images = maps(rows + 1, 1, 2, 3).requires_grad_(True)
    labels = torch.arange(rows) % 4
    total = 0.0
    for b in range(rows):
        pair = [slow_slope(net, images[b].detach(), int(labels[b])) for net in (ours, theirs)]
        total += sum((x - y) ** 2 for x, y in zip(*pair, strict=True)) / rows
    method = joint("jacobian", reduction=reduction, weight=2.0)
    nets = {"student": Outputs(ours(images)), "teacher": Outputs(theirs(images))}
    found = speak(method, nets, batch(labels, generated=1)._replace(inputs=images))
    assert weights(found)["jacobian"] == 2.0
    expected = total / 6 if reduction == "element" else total
    assert found["jacobian"].value.item() == pytest.approx(expected, rel=1e-6)


def test_a_rounded_copy_of_the_images() -> None:
    """Mixed precision gives the method a copy, of which the teacher knows nothing."""
    images = maps(2, 1, 2, 3).requires_grad_(True)
    nets = {"student": Outputs(network(3, 0)(images)), "teacher": Outputs(network(5, 1)(images))}
    rows = batch(2)._replace(inputs=images)
    expected = speak(joint("jacobian"), nets, rows)["jacobian"].value
    copied = rows._replace(inputs=images.bfloat16())
    assert torch.equal(speak(joint("jacobian"), nets, copied)["jacobian"].value, expected)


def test_gradients_of_second_order() -> None:
    """The student's weights get the gradient of the loss; the teacher's none."""
    ours, theirs = network(3, 0), network(5, 1)
    images, labels = maps(2, 1, 2, 3).requires_grad_(True), torch.tensor([1, 3])

    def loss() -> Tensor:
        student = slopes(ours(images), images, labels, differentiable=True)
        return jacobian_loss(student, slopes(theirs(images), images, labels))

    loss().backward()
    assert all(p.grad is None for p in theirs.parameters())
    weight = ours[1].weight
    with torch.no_grad():
        weight[1, 2] += 1e-6
    up = loss().item()
    with torch.no_grad():
        weight[1, 2] -= 2e-6
    assert weight.grad is not None
    assert (up - loss().item()) / 2e-6 == pytest.approx(weight.grad[1, 2].item(), rel=1e-5)


def test_gradcheck_and_limits() -> None:
    """Of the distance; equal directions give 0 and opposite ones 4, whatever their length."""
    one = maps(3, 5).requires_grad_(True)
    goal = maps(3, 5, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: jacobian_loss(x, goal), (one,))
    jacobian_loss(one, goal).backward()
    assert goal.grad is None
    unit = torch.nn.functional.normalize(goal.detach(), dim=1)
    assert jacobian_loss(unit, unit) == 0
    assert jacobian_loss(-unit, unit).item() == pytest.approx(4)


def test_a_flat_student_is_finite() -> None:
    """Without any slope there is a loss of 1 and no gradient that is not a number."""
    net = network(3, 0)
    with torch.no_grad():
        net[3].weight.zero_()
    images = maps(2, 1, 2, 3).requires_grad_(True)
    found = slopes(net(images), images, torch.tensor([0, 1]), differentiable=True)
    loss = jacobian_loss(found, torch.nn.functional.normalize(maps(2, 6), dim=1))
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
