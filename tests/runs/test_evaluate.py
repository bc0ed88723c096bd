"""Numbers about networks, against loops."""

import math

import pytest
import torch

from fskd.data import loader
from fskd.data.datasets.base import load
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.runs.evaluate import (
    agreement,
    calibration_error,
    path_variation,
    predict,
    scores,
    total_variation,
)


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


def test_parts_of_a_pass_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images, cpu = load("digits").test, torch.device("cpu")
    nets = [FeatureNet(build("cnn_tiny", 10, 1)) for _ in range(2)]
    some, seen = torch.tensor([5, 1, 598, 300, 7]), list[int]()

    def measured() -> tuple[torch.Tensor, torch.Tensor, float]:
        chosen = predict(nets[0], images, cpu, some)
        whole = predict(nets[0], images, cpu, seen=seen.append)
        return chosen, whole, path_variation(*nets, images, torch.arange(50), cpu, 0, 100)

    chosen, whole, paths = measured()
    assert whole.shape == (599, 10)
    assert sum(seen) == 599
    assert max(seen) <= 256
    torch.testing.assert_close(chosen, whole[some])
    monkeypatch.setitem(loader.PIXELS, "cpu", 64 * 13)  # 13 images at a time
    seen.clear()
    again = measured()
    assert max(seen) == 13
    torch.testing.assert_close(again[:2], (chosen, whole))
    assert again[2] == pytest.approx(paths, rel=1e-5)
    assert nets[0].training, "the mode is left as it was"
