"""Numbers about networks, against loops."""

import math

import pytest
import torch

from fskd.train.evaluate import agreement, calibration_error, scores, total_variation


def slow_scores(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Row by row."""
    n, top1, top5, nll = len(targets), 0, 0, 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), targets.tolist(), strict=True):
        total = math.log(sum(math.exp(z - max(row)) for z in row)) + max(row)
        probs = [math.exp(z - total) for z in row]
        order = sorted(range(len(row)), key=lambda c: -row[c])
        top1, top5 = top1 + (order[0] == label), top5 + (label in order[:5])
        nll -= math.log(probs[label])
        confidence = max(probs)
        place = next(i for i in range(15) if confidence <= (i + 1) / 15 + 1e-12)
        bins[place].append((confidence, order[0] == label))
    ece = sum(
        abs(sum(hit for _, hit in rows) - sum(c for c, _ in rows)) / n for rows in bins if rows
    )
    return {"top1": top1 / n, "top5": top5 / n, "nll": nll / n, "ece": ece}


@pytest.mark.parametrize(("n", "classes", "scale"), [(200, 12, 3.0), (7, 100, 1.0), (50, 3, 20.0)])
def test_scores(n: int, classes: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=rng) * scale
    targets = torch.randint(classes, (n,), generator=rng)
    found, expected = scores(logits, targets), slow_scores(logits, targets)
    for name in ("top1", "nll", "ece"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert found["top5"] == (pytest.approx(expected["top5"]) if classes > 10 else None)


def test_calibration_of_the_certain_and_the_ignorant() -> None:
    certain = torch.eye(4)
    assert calibration_error(certain, torch.arange(4)) == 0
    assert calibration_error(certain, (torch.arange(4) + 1) % 4) == 1
    # A quarter of the rows is right at a confidence of a quarter.
    assert calibration_error(torch.full((8, 4), 0.25), torch.arange(8) % 4) == pytest.approx(0)


def test_distances() -> None:
    sure, other = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert total_variation(sure, sure) == 0
    assert total_variation(sure, other) == pytest.approx(1)
    half = torch.tensor([[1.0, 1.0]])
    assert total_variation(sure, half) == pytest.approx(0.5)
    assert agreement(torch.cat([sure, other]), torch.cat([sure, sure])) == 0.5
