"""The fused paths lose no more digits than the plain composition, whatever shape and scale."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rounding import as_close_as_plain, differentiated, exact, plain
from torch import Tensor

from fskd.losses import kd_loss, kd_loss_and_grad, kd_terms, linear_kd_loss
from fskd.losses.fused import execute
from fskd.losses.targets import kd_objective

SCALES = [1.0, 5.0, 20.0]
SHAPES = [(7, 5), (64, 10), (256, 100), (256, 1000), (8, 50257), (9, 200_000)]


def inputs(data: Any, shape: tuple[int, int], scale: float, generated: int = 3) -> list[Any]:
    """Several draws; every so many-th row is generated, or none."""
    rows, classes = shape
    n_real = rows - rows // generated if generated else rows
    seeds = range(3 if rows * classes > 100_000 else 12)
    return [data(rows, classes, n_real, torch.float32, scale, seed) for seed in seeds]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eager(
    data: Any, shape: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "fastest", lambda *_: "eager")
    draws = inputs(data, shape, scale)
    plainly, expected = [plain(x) for x in draws], [exact(x) for x in draws]

    def loss(x: Any) -> Any:
        return lambda s: kd_loss(s, x.teacher, x.targets, impl="eager")

    def by_row(x: Any) -> Any:
        """The same as a sum of the rows' losses."""
        return lambda s: _mean(kd_loss(s, x.teacher, x.targets, impl="eager", reduction="none"), x)

    def terms(x: Any, weights: Any) -> Any:
        def weighted(student: Tensor) -> Tensor:
            ce, kd, generated = kd_terms(student, x.teacher, x.targets, weights=weights)
            return 0.1 * ce + 0.9 * kd + generated

        return weighted

    ways: list[list[tuple[Tensor, Tensor]]] = [
        [kd_loss_and_grad(*x[:3], impl="eager") for x in draws],
        [differentiated(loss(x), x.student) for x in draws],
        [differentiated(terms(x, (0.1, 0.9, 1.0)), x.student) for x in draws],
        [differentiated(terms(x, None), x.student) for x in draws],
    ]
    ways.append([differentiated(by_row(x), x.student) for x in draws])
    for found in ways:
        as_close_as_plain(found, plainly, expected)


def _mean(losses: Tensor, x: Any) -> Tensor:
    """Of the real rows and of the generated ones."""
    n = len(x.targets)
    return losses[:n].mean() + losses[n:].mean()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(64, 10), (256, 1000), (8, 50257)], ids=str)
def test_last_layer(data: Any, shape: tuple[int, int], scale: float) -> None:
    """Of hidden rows; all are real, since a matrix product of fewer rows adds up in another way."""
    width, found, plainly, expected = 16, [], [], []
    for x in inputs(data, shape, scale, generated=0):
        draw = torch.Generator().manual_seed(len(found))
        hidden, weight = (torch.randn(n, width, generator=draw) for n in shape)
        weight *= scale / width**0.5

        def fused(h: Tensor, x: Any = x, w: Tensor = weight) -> Tensor:
            return linear_kd_loss(h, w, teacher_logits=x.teacher, targets=x.targets, impl="eager")

        def composed(h: Tensor, x: Any = x, w: Tensor = weight) -> Tensor:
            return kd_objective(F.linear(h, w.to(h.dtype)), x.teacher.to(h.dtype), x.targets)

        found.append(differentiated(fused, hidden))
        plainly.append(differentiated(composed, hidden))
        expected.append(differentiated(composed, hidden.double()))
    as_close_as_plain(found, plainly, expected)
