"""FS-BBT: mixes, codes, the CVAE against its formula, and what the method is for."""

import math
from typing import Any

import pytest
import torch
from digit_box import go, known
from torch import Tensor, nn

from fskd.data.datasets.base import load
from fskd.errors import SettingError
from fskd.methods.base import methods
from fskd.models.cvae import CVAE, cvae_loss, decoded, fitted
from fskd.procedures.fs_bbt import FSBBT, codes, inner_shares, random_mixes
from fskd.procedures.pairs import mixed

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def method(**settings: Any) -> FSBBT:
    made = methods.get("fs_bbt")(FSBBT.Settings(**settings))
    assert isinstance(made, FSBBT)
    return made


def pictures(n: int, size: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    return torch.randint(256, (n, *size), generator=rng(3), dtype=torch.uint8)


def test_mixing_against_loops() -> None:
    """Rounded to whole levels; more rows than are mixed at once."""
    images, m = pictures(5, (2, 3, 3)), 4100
    first, second = (torch.randint(5, (m,), generator=rng(i)) for i in (1, 2))
    share = torch.rand(m, generator=rng(4))
    found = mixed(images, first, second, share)
    assert found.dtype == torch.uint8
    assert found.shape == (m, 2, 3, 3)
    for k in (0, 1, 17, 4095, 4096, 4099):
        one, other = images[first[k]].double(), images[second[k]].double()
        exact = float(share[k]) * one + (1 - float(share[k])) * other
        assert (found[k].double() - exact).abs().max() <= 0.5 + 1e-4
    assert mixed(images, first[:0], second[:0], share[:0]).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0])
def test_shares_keep_away_from_the_ends(alpha: float) -> None:
    share = inner_shares(2000, alpha, 0.05, rng())
    assert len(share) == 2000
    assert 0.05 < float(share.min()) <= float(share.max()) < 0.95
    inside = torch.distributions.Beta(alpha, alpha).sample(torch.Size([20000]))
    inside = inside[(inside > 0.05) & (inside < 0.95)]
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(share.std()) == pytest.approx(float(inside.std()), abs=0.03)


def test_mixes_are_of_two_images() -> None:
    """Each image is one level here, so that a mix tells its parents."""
    images = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1)
    mixes = random_mixes(images, 500, 1.0, 0.05, rng())
    assert 10 <= int(mixes.min()) < 40
    assert 160 < int(mixes.max()) <= 190


def test_codes() -> None:
    z = codes(2001, 2, rng())
    assert z.shape == (2001, 2)
    assert float(z[1000:].abs().max()) <= 3
    assert float(z[:1000].std()) == pytest.approx(1, abs=0.06)
    assert float(z[1000:].std()) == pytest.approx(math.sqrt(3), abs=0.06)


def test_loss_against_loops() -> None:
    """Bernoulli log-likelihood and the divergence of two Gaussians, in float64."""
    logits, mean, log_var = (
        torch.randn(*shape, generator=rng(i)).double() * 2
        for i, shape in enumerate([(3, 2, 4, 5), (3, 6), (3, 6)])
    )
    images = torch.rand(3, 2, 4, 5, generator=rng(9)).double()
    rows = []
    for b in range(3):
        total = 0.0
        for x, z in zip(images[b].flatten().tolist(), logits[b].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-z))
            total -= x * math.log(p) + (1 - x) * math.log(1 - p)
        for m, v in zip(mean[b].tolist(), log_var[b].exp().tolist(), strict=True):
            total += 0.5 * (v + m * m - 1 - math.log(v))
        rows.append(total)
    assert float(cvae_loss(logits, images, mean, log_var)) == pytest.approx(sum(rows) / 3)


def test_loss_is_least_at_the_prior() -> None:
    mean, log_var = torch.zeros(2, 3), torch.zeros(2, 3)
    images = torch.full((2, 1, 2, 2), 0.5)
    least = cvae_loss(torch.zeros(2, 1, 2, 2), images, mean, log_var)
    assert float(least) == pytest.approx(4 * math.log(2))
    for moved in ((mean + 0.1, log_var), (mean, log_var + 0.1), (mean, log_var - 0.1)):
        assert cvae_loss(torch.zeros(2, 1, 2, 2), images, *moved) > least


def test_extreme_logits() -> None:
    logits = torch.full((1, 1, 2, 2), -300.0).requires_grad_()
    loss = cvae_loss(logits, torch.ones(1, 1, 2, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1200)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 5, 7)])
def test_sizes(size: tuple[int, int, int]) -> None:
    """Any size comes back, from images and from codes; everything gets a gradient."""
    net, classes = CVAE(size, 4, latent=3), torch.tensor([0, 3])
    x = torch.rand(2, *size)
    logits, mean, log_var = net(x, classes, torch.randn(2, 3))
    assert logits.shape == (2, *size)
    assert mean.shape == log_var.shape == (2, 3)
    cvae_loss(logits, x, mean, log_var).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    levels = decoded(net, torch.randn(300, 3), torch.arange(300) % 4)
    assert levels.dtype == torch.uint8
    assert levels.shape == (300, *size)


def test_noise_has_the_spread_of_the_code() -> None:
    net, classes = CVAE((1, 4, 4), 2, latent=2), torch.zeros(2, dtype=torch.int64)
    seen: list[Tensor] = []
    net.decode = lambda z, classes: seen.append(z) or z  # type: ignore
    noise = torch.randn(2, 2, generator=rng())
    _, mean, log_var = net(torch.rand(2, 1, 4, 4), classes, noise)
    torch.testing.assert_close(seen[0], mean + noise * log_var.exp().sqrt())


def test_samples_have_their_class() -> None:
    """Trained on 100 digits, it draws digits that the black box takes for the class asked for."""
    train = load("digits").train
    images = torch.as_tensor(train.images)[:100]
    net, loss = fitted(images, train.targets[:100], 10, 300, 2, rng(), CPU)
    untrained = fitted(images, train.targets[:100], 10, 1, 2, rng(), CPU)[1]
    assert loss < 0.8 * untrained
    classes = torch.arange(200) % 10
    drawn = decoded(net, torch.randn(200, 2, generator=rng()), classes).flatten(1) / 255
    rows, targets = known()
    nearest = targets[torch.cdist(drawn, rows).argmin(1)].argmax(1)
    assert float((nearest == classes).float().mean()) > 0.6


def test_the_same_seed_the_same_network() -> None:
    """And the global stream of random numbers is left alone."""
    images, classes = pictures(6), torch.arange(6) % 3
    torch.manual_seed(5)
    nets = [fitted(images, classes, 3, 3, 2, rng(), CPU)[0] for _ in range(2)]
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    one, other = (nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("n", "budget", "settings", "expected"),
    [
        (20, 120, {}, (20, 90, 10)),
        (20, None, {}, (20, 216, 24)),
        (20, None, {"queries": 50, "cvae_share": 0.0}, (20, 30, 0)),
        (20, 100, {"queries": 50, "cvae_share": 1.0}, (20, 0, 30)),
        (20, 21, {}, (20, 1, 0)),
    ],
)
def test_plan(
    n: int, budget: int | None, settings: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert method(**settings).plan(n, budget) == expected
    assert method(**settings).queries(n, 1, budget) == sum(expected)


def test_refused() -> None:
    with pytest.raises(SettingError, match=r"^teacher\.queries: 20 is .* at least 21"):
        method().queries(20, 10, 20)
    with pytest.raises(SettingError, match=r"^data: a subset of 1 image"):
        method().queries(1, 10, None)


def test_better_than_the_few_images_alone() -> None:
    """Two images of each class and 260 questions: several points above KD on the images."""
    alone = {"name": "kd", "ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1.0}
    ours = {"name": "fs_bbt", "cvae_steps": 300}
    found = [go(None, one, steps=150, seed=1).top1 for one in (alone, ours)]
    assert found[1] > found[0] + 0.04
