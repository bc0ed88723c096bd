"""Mixup against loops over rows and pixels, and the distributions of pairs and shares."""

import pytest
import torch
from pydantic import ValidationError

from fskd.generators.mixup import Mixup, MixupSettings, interpolate
from fskd.generators.partners import partners
from fskd.generators.shares import draw_shares
from fskd.types import Batch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(rows: int, classes: int = 3, shape: tuple[int, ...] = (2, 3, 4)) -> Batch:
    images = torch.randn(rows, *shape, generator=rng(9), dtype=torch.float64)
    return Batch(images, torch.arange(rows) % classes, torch.arange(rows))


def slow_interpolate(
    images: torch.Tensor, first: list[int], partner: list[int], lam: list[float]
) -> torch.Tensor:
    """Pixel by pixel."""
    _, channels, height, width = images.shape
    made = torch.empty(len(lam), channels, height, width, dtype=torch.float64)
    for m, (i, j, share) in enumerate(zip(first, partner, lam, strict=True)):
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    a, b = images[i, c, h, w].item(), images[j, c, h, w].item()
                    made[m, c, h, w] = share * a + (1 - share) * b
    return made


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (4, 4), (5, 3), (3, 8)])
def test_slow_twin(rows: int, n: int) -> None:
    """x~ = lambda x_i + (1 - lambda) x_j."""
    images = make_batch(rows).inputs
    first = torch.randint(rows, (n,), generator=rng(1))
    partner = torch.randint(rows, (n,), generator=rng(2))
    lam = torch.rand(n, generator=rng(3), dtype=torch.float64)
    expected = slow_interpolate(images, first.tolist(), partner.tolist(), lam.tolist())
    torch.testing.assert_close(interpolate(images, partner, lam, first), expected)
    if n <= rows:
        by_order = slow_interpolate(images, list(range(n)), partner.tolist(), lam.tolist())
        torch.testing.assert_close(interpolate(images, partner, lam), by_order)


def test_limits() -> None:
    """Share 1 is the first parent, 0 the second, and a self pair the row itself."""
    images = make_batch(4).inputs
    partner = torch.tensor([2, 3, 0, 1])
    assert torch.equal(interpolate(images, partner, torch.ones(4)), images)
    assert torch.equal(interpolate(images, partner, torch.zeros(4)), images[partner])
    half = interpolate(images, torch.arange(4), torch.full((4,), 0.5))
    torch.testing.assert_close(half, images)


@pytest.mark.parametrize("pairs", ["all", "no_self", "different_class"])
@pytest.mark.parametrize("lam", ["uniform", "beta", "fixed"])
@pytest.mark.parametrize("lam_per", ["sample", "batch"])
def test_rows_match_targets_and_weights(pairs: str, lam: str, lam_per: str) -> None:
    """Every generated row is the recorded mixture of two rows of the recorded classes."""
    batch = make_batch(6, classes=6)  # the class identifies the row
    settings = MixupSettings(pairs=pairs, lam=lam, lam_per=lam_per, value=0.3)
    longer = Mixup(settings)(batch, rng(), 15)
    assert longer.parents is not None
    assert longer.shares is not None
    first, partner = longer.parents.T.tolist()
    expected = slow_interpolate(batch.inputs, first, partner, longer.shares[:, 0].double().tolist())
    torch.testing.assert_close(longer.inputs[6:], expected)
    assert first == [m % 6 for m in range(15)]


def test_inside_the_segment() -> None:
    """Nothing is extrapolated: every pixel lies between its parents'."""
    batch = make_batch(9, classes=9)
    for lam in ("uniform", "beta"):
        longer = Mixup(MixupSettings(lam=lam, alpha=0.2))(batch, rng(), 50)
        assert longer.parents is not None
        one, two = batch.inputs[longer.parents].unbind(1)
        made = longer.inputs[9:]
        assert (made >= torch.minimum(one, two) - 1e-12).all()
        assert (made <= torch.maximum(one, two) + 1e-12).all()


def test_commutes_with_normalisation() -> None:
    """Mixing before and after an affine map of the pixels is the same."""
    images, partner, lam = (
        make_batch(4).inputs,
        torch.tensor([1, 2, 3, 0]),
        torch.rand(4, generator=rng()),
    )
    torch.testing.assert_close(
        interpolate(2 * images - 0.7, partner, lam), 2 * interpolate(images, partner, lam) - 0.7
    )


N = 20_000


def moments(drawn: torch.Tensor) -> tuple[float, float]:
    return drawn.double().mean().item(), drawn.double().var().item()


def test_uniform_shares() -> None:
    """Mean 1/2, variance 1/12, within [0, 1)."""
    drawn = draw_shares(N, "uniform", "sample", rng())
    mean, variance = moments(drawn)
    assert mean == pytest.approx(0.5, abs=0.01)
    assert variance == pytest.approx(1 / 12, abs=0.002)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.0, 0.1), (0.9, 1.0), (0.4, 0.4)])
def test_interval_shares(low: float, high: float) -> None:
    """Uniform on [low, high]."""
    drawn = draw_shares(N, "uniform", "sample", rng(), low=low, high=high)
    mean, variance = moments(drawn)
    assert mean == pytest.approx((low + high) / 2, abs=0.01)
    assert variance == pytest.approx((high - low) ** 2 / 12, abs=0.002)
    assert drawn.min() >= low - 1e-6
    assert drawn.max() <= min(high + 1e-6, 1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_beta_shares(alpha: float) -> None:
    """Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))."""
    mean, variance = moments(draw_shares(N, "beta", "sample", rng(), alpha=alpha))
    assert mean == pytest.approx(0.5, abs=0.015)
    assert variance == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
def test_extreme_beta_shares(alpha: float) -> None:
    """No NaN and nothing outside [0, 1] at the ends of the range."""
    drawn = draw_shares(1000, "beta", "sample", rng(), alpha=alpha)
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_fixed_shares() -> None:
    """The value, for all."""
    for per in ("sample", "batch"):
        assert draw_shares(5, "fixed", per, rng(), value=0.3).tolist() == pytest.approx([0.3] * 5)


@pytest.mark.parametrize("rule", ["uniform", "beta"])
def test_per_sample_or_batch(rule: str) -> None:
    """One draw per sample differs within a batch; one per batch does not, but between batches."""
    stream = rng()
    per_sample = draw_shares(50, rule, "sample", stream)
    assert len(set(per_sample.tolist())) == 50
    batches = [draw_shares(50, rule, "batch", stream) for _ in range(5)]
    assert all(len(set(b.tolist())) == 1 and b.shape == (50,) for b in batches)
    assert len({b[0].item() for b in batches}) == 5


@pytest.mark.parametrize("rows", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 5, 7, 20])
def test_no_self(rows: int, n: int) -> None:
    """No row is its own partner; within a round each row is a partner once."""
    for seed in range(30):
        found = partners.get("no_self")(torch.zeros(rows, dtype=torch.int64), n, rng(seed))
        assert found is not None
        first, partner = found
        assert first.tolist() == [m % rows for m in range(n)]
        assert (first != partner).all()
        for chunk in partner.split(rows):
            assert len(chunk.unique()) == len(chunk)


def test_no_self_is_unbiased() -> None:
    """Every other row is an equally frequent partner."""
    counts = torch.zeros(4, 4)
    for seed in range(3000):
        found = partners.get("no_self")(torch.zeros(4, dtype=torch.int64), 4, rng(seed))
        assert found is not None
        counts[found] += 1
    assert counts.diagonal().sum() == 0
    torch.testing.assert_close(
        counts + 1000 * torch.eye(4), torch.full((4, 4), 1000.0), rtol=0.12, atol=0
    )


@pytest.mark.parametrize("n", [3, 5, 12])
def test_all_is_a_permutation(n: int) -> None:
    """Within a round each row is a partner once; self pairs occur."""
    selfs = 0
    for seed in range(50):
        found = partners.get("all")(torch.zeros(5, dtype=torch.int64), n, rng(seed))
        assert found is not None
        first, partner = found
        selfs += int((first == partner).sum())
        for chunk in partner.split(5):
            assert len(chunk.unique()) == len(chunk)
    assert selfs > 0


@pytest.mark.parametrize("n", [2, 7, 30])
def test_different_class(n: int) -> None:
    """Partners come from another class, every such row among them."""
    targets = torch.tensor([0, 0, 0, 1, 2, 2, 0])
    seen = set()
    for seed in range(60):
        found = partners.get("different_class")(targets, n, rng(seed))
        assert found is not None
        first, partner = found
        assert first.tolist() == [m % 7 for m in range(n)]
        assert (targets[first] != targets[partner]).all()
        seen |= set(zip(first.tolist(), partner.tolist(), strict=True))
    expected = {(i, j) for i in range(min(n, 7)) for j in range(7) if targets[i] != targets[j]}
    assert seen == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lam", "gamma"), ("alpha", 0), ("alpha", -1), ("low", -0.1), ("high", 1.1),
        ("value", 2), ("lam_per", "pixel"), ("pairs", "same_class"), ("alpha", float("inf")),
    ],
)  # fmt: skip
def test_bad_settings(setting: str, value: object) -> None:
    """Refused by name."""
    with pytest.raises(ValidationError, match=setting):
        MixupSettings(**{setting: value})


def test_bad_interval() -> None:
    """The ends must be in order."""
    with pytest.raises(ValidationError, match=r"low \(0.7\) must not exceed high \(0.2\)"):
        MixupSettings(low=0.7, high=0.2)
