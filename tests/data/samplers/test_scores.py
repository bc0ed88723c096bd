"""EL2N, margin and entropy: formulas against loops in high precision, and their orders."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from fskd.data.samplers.base import samplers
from fskd.data.samplers.el2n import EL2N, EL2NSettings, el2n
from fskd.data.samplers.entropy import entropy
from fskd.data.samplers.margin import doubt
from fskd.seeding import numpy_generator
from fskd.types import Pool

N, K = 40, 5
LOGITS = np.random.default_rng(0).normal(size=(N, K)) * np.geomspace(0.1, 60, N)[:, None]
MILD = np.float32(LOGITS / 20).astype(np.float64)  # no two scores round to the same
TARGETS = np.random.default_rng(1).integers(0, K, N)


def slow(logits: np.ndarray, targets: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """(EL2N, 1 - margin, entropy) with 400 digits."""
    errors, doubts, entropies = [], [], []
    with localcontext() as context:
        context.prec = 400
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
            powers = [Decimal(v).exp() for v in row]
            probs = [p / sum(powers) for p in powers]
            gaps = [p - (c == target) for c, p in enumerate(probs)]
            errors.append(float(sum((g * g for g in gaps), Decimal(0)).sqrt()))
            first, second = sorted(probs, reverse=True)[:2]
            doubts.append(float(1 - (first - second)))
            entropies.append(float(-sum(p * p.ln() for p in probs)))
    return errors, doubts, entropies


def test_formulas() -> None:
    """To 12 digits, also for probabilities of 1 - 1e-40."""
    errors, doubts, entropies = slow(LOGITS, TARGETS)
    np.testing.assert_allclose(el2n(LOGITS, TARGETS), errors, rtol=1e-12)
    np.testing.assert_allclose(doubt(LOGITS), doubts, rtol=1e-12)
    np.testing.assert_allclose(entropy(LOGITS), entropies, rtol=1e-12)
    assert min(doubts) < 1e-20


def test_limits() -> None:
    """Uniform, certain and huge logits."""
    equal, sure = np.zeros((1, K)), np.eye(K)[[2]] * 1e4
    assert entropy(equal)[0] == pytest.approx(np.log(K))
    assert doubt(equal)[0] == pytest.approx(1)
    assert el2n(equal, np.array([0]))[0] == pytest.approx(np.sqrt(1 - 1 / K))
    assert entropy(sure)[0] == doubt(sure)[0] == el2n(sure, np.array([2]))[0] == 0
    assert el2n(sure, np.array([0]))[0] == pytest.approx(np.sqrt(2))
    assert doubt(np.zeros((1, 1)))[0] == entropy(np.zeros((1, 1)))[0] == 0


@pytest.mark.parametrize("name", ["el2n", "margin", "entropy"])
@pytest.mark.parametrize("per_class", [True, False])
def test_order(name: str, per_class: bool) -> None:
    """Descending scores, of each class or of all."""
    formulas = dict(zip(("el2n", "margin", "entropy"), slow(MILD, TARGETS), strict=True))
    score = np.array(formulas[name])
    cls = samplers.get(name)
    pool = Pool(torch.from_numpy(TARGETS), logits=torch.from_numpy(MILD))
    order = cls(cls.Settings(per_class=per_class)).rank(pool, numpy_generator(0))
    groups = [order[TARGETS[order] == c] for c in range(K)] if per_class else [order]
    assert all((np.diff(score[group]) <= 0).all() for group in groups)


def test_easiest() -> None:
    """Of each class in the opposite order."""
    pool = Pool(torch.from_numpy(TARGETS), logits=torch.from_numpy(MILD))
    hard = EL2N().rank(pool, numpy_generator(0))
    easy = EL2N(EL2NSettings(first="easiest")).rank(pool, numpy_generator(0))
    for c in range(K):
        assert hard[TARGETS[hard] == c].tolist() == easy[TARGETS[easy] == c].tolist()[::-1]


@pytest.mark.parametrize("name", ["el2n", "margin", "entropy"])
def test_ties_fall_at_random(name: str) -> None:
    """Equal scores are not taken by position."""
    pool = Pool(torch.zeros(20, dtype=torch.int64), logits=torch.zeros(20, 3))
    firsts = {int(samplers.get(name)().rank(pool, numpy_generator(s))[0]) for s in range(60)}
    assert len(firsts) > 10
