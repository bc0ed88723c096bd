"""Mixup KD: a preset of objective and generator, and its loss on mixed rows."""

import math

import pytest
import torch
from recorded import maps
from steps import batch, joint, phase, speak, weighted, weights

from fskd.generators.base import generators
from fskd.methods.base import Method
from fskd.methods.mixupkd import MixupKD
from fskd.resolve import resolve
from fskd.types import Batch, Outputs


def log_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    norm = math.log(sum(math.exp(z / temperature) for z in row))
    return [z / temperature - norm for z in row]


@pytest.mark.parametrize("rows", [1, 5])
def test_slow_twin(rows: int) -> None:
    """Mixed labels and the teacher's soft targets of mixed rows, number by number; gradients."""
    none = torch.empty(0, dtype=torch.int64)
    parents = torch.stack([torch.arange(rows) % 4, (torch.arange(rows) + 1) % 4], 1)
    share = torch.linspace(0.1, 0.6, rows, dtype=torch.float64)
    shares = torch.stack([share, 1 - share], 1)
    made = {"generated": slice(0, rows)}
    mixed = Batch(torch.zeros(rows, 1, 2, 2), none, none, made, parents=parents, shares=shares)
    student, teacher = maps(rows, 4).requires_grad_(), maps(rows, 4, seed=1)
    labels, kl = 0.0, 0.0
    for b in range(rows):
        s, t = student[b].tolist(), teacher[b].tolist()
        i, j = parents[b].tolist()
        log_q, part = log_softmax(s), share[b].item()
        labels -= (part * log_q[i] + (1 - part) * log_q[j]) / rows
        soft = zip(log_softmax(t, 4.0), log_softmax(s, 4.0), strict=True)
        kl += 16 * sum(math.exp(p) * (p - q) for p, q in soft) / rows
    run = joint("mixupkd")

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return weighted(
            speak(run, {"student": Outputs(logits), "teacher": Outputs(teacher)}, mixed)
        )

    assert loss(student).item() == pytest.approx(0.1 * labels + 0.9 * kl, rel=1e-10)
    assert torch.autograd.gradcheck(loss, student)


def test_preset() -> None:
    """Mixed rows in the place of real ones, one share drawn a batch."""
    config = resolve({"method": "mixupkd"})
    assert config.generator is not None
    assert config.teacher is not None
    made = config.generator.model_dump()
    expected = {"name": "mixup", "share": 1.0, "lam": "beta", "alpha": 1.0, "lam_per": "batch"}
    assert {name: made[name] for name in expected} == expected
    assert MixupKD.terms is Method.terms
    assert (phase(joint("mixupkd")).asks, phase(joint("mixupkd")).generated) == (True, True)


def test_what_the_generator_makes() -> None:
    """Its rows carry parents and shares; with real rows beside them KD's terms are there, too."""
    ((name, settings),) = resolve({"method": "mixupkd"}).generator.parts  # type: ignore[union-attr]
    real = Batch(torch.rand(6, 1, 2, 2), torch.arange(6) % 4, torch.arange(6))
    only = generators.get(name)(settings)(real, torch.Generator().manual_seed(0))
    assert (only.n_real, only.n_generated) == (0, 6)
    assert only.shares is not None
    assert len(only.shares[:, 0].unique()) == 1
    both = generators.get(name)()(real, torch.Generator().manual_seed(0))
    for rows, expected in (
        (only, {"generated": 0.9, "mixed": 0.1}),
        (both, {"ce": 0.1, "kd": 0.9, "generated": 0.9, "mixed": 0.1}),
        (batch(3), {"ce": 0.1, "kd": 0.9}),
    ):
        given = {net: Outputs(maps(len(rows.inputs), 4)) for net in ("student", "teacher")}
        assert weights(speak(joint("mixupkd"), given, rows)) == expected


def test_a_layer_wins() -> None:
    """Any part may be changed; another generator is that one's defaults."""
    config = resolve({"method": "mixupkd", "generator": {"share": 0.5}})
    assert config.generator is not None
    assert config.generator.model_dump()["share"] == 0.5
    other = resolve({"method": "mixupkd", "generator": "cutmix"})
    assert other.generator is not None
    assert other.generator.name == "cutmix"
