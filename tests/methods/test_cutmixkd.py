"""CutMix KD: a preset of objective and generator."""

import pytest
import torch
from recorded import maps
from steps import batch, joint, speak, weighted, weights

from fskd.generators.base import generators
from fskd.losses.targets import cross_entropy, kl_divergence
from fskd.methods.base import Method
from fskd.methods.cutmixkd import CutMixKD
from fskd.resolve import resolve
from fskd.types import Batch, Outputs


@pytest.mark.parametrize(("real", "made"), [(4, 4), (1, 1), (3, 0)])
def test_formula(real: int, made: int) -> None:
    """0.1 CE + 0.9 KD of real rows + 0.9 KD of rows with a box; labels are not mixed."""
    student, teacher = maps(real + made, 4).requires_grad_(), maps(real + made, 4, seed=1)
    rows, run = batch(real, made), joint("cutmixkd")

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return weighted(speak(run, {"student": Outputs(logits), "teacher": Outputs(teacher)}, rows))

    expected = 0.1 * cross_entropy(student[:real], rows.targets)
    expected = expected + 0.9 * kl_divergence(student[:real], teacher[:real], 4.0)
    if made:
        expected = expected + 0.9 * kl_divergence(student[real:], teacher[real:], 4.0)
    torch.testing.assert_close(loss(student), expected)
    # Through the fused terms, whose gradient is in closed form.
    assert torch.autograd.gradcheck(loss, student)


def test_preset() -> None:
    """Boxes of other rows, as many generated rows as real ones."""
    config = resolve({"method": "cutmixkd"})
    assert config.generator is not None
    assert config.teacher is not None
    made = config.generator.model_dump()
    expected = {"name": "cutmix", "pairs": "no_self", "share": 0.5, "alpha": 1.0, "when": "joint"}
    assert {name: made[name] for name in expected} == expected
    assert not config.data.augment.active
    assert CutMixKD.terms is Method.terms


def test_what_the_generator_makes() -> None:
    """No row is its own partner, so each generated one holds values of two rows at most."""
    ((name, settings),) = resolve({"method": "cutmixkd"}).generator.parts  # type: ignore[union-attr]
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    real = Batch(pixels, torch.arange(6), torch.arange(6))
    both = generators.get(name)(settings)(real, torch.Generator().manual_seed(0))
    assert (both.n_real, both.n_generated) == (6, 6)
    assert both.parents is not None
    assert (both.parents[:, 0] != both.parents[:, 1]).all()
    for row, pair in zip(both.inputs[6:], both.parents.tolist(), strict=True):
        assert set(row.unique().tolist()) <= set(map(float, pair))
    given = {net: Outputs(maps(12, 6)) for net in ("student", "teacher")}
    found = speak(joint("cutmixkd"), given, both)
    assert weights(found) == {"ce": 0.1, "kd": 0.9, "generated": 0.9}


def test_a_layer_wins() -> None:
    """Pairs, and the generator itself."""
    config = resolve({"method": "cutmixkd", "generator": {"pairs": "all"}})
    assert config.generator is not None
    assert config.generator.model_dump()["pairs"] == "all"
    assert resolve({"method": "cutmixkd", "generator": "none"}).generator is None
