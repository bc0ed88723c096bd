"""BBKD: the selection against its definition, the budget, and what it is for."""

from typing import Any

import pytest
import torch
from digit_box import go
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.base import methods
from fskd.procedures.bbkd import BBKD, least_confident
from fskd.procedures.pairs import distinct, pair

RNG = torch.Generator


def method(**settings: Any) -> BBKD:
    made = methods.get("bbkd")(BBKD.Settings(**settings))
    assert isinstance(made, BBKD)
    return made


def test_least_confident_share() -> None:
    """The share whose largest probability is smallest, pair by pair."""
    logits = torch.randn(6, 5, 4, generator=RNG().manual_seed(0)) * 3
    which, confidence = least_confident(logits)
    for p in range(6):
        tops = []
        for share in range(5):
            z = [2.718281828459045 ** float(x) for x in logits[p, share]]
            tops.append(max(z) / sum(z))
        assert int(which[p]) == tops.index(min(tops))
        assert float(confidence[p]) == pytest.approx(min(tops), rel=1e-5)


def test_extreme_logits() -> None:
    which, confidence = least_confident(torch.tensor([[[1e4, 0.0], [0.0, 0.0], [-1e4, 3.0]]]))
    assert (int(which), float(confidence)) == (1, 0.5)


def test_pairs_by_number() -> None:
    expected = [(i, j) for j in range(40) for i in range(j)]
    first, second = pair(torch.arange(len(expected)))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    n = 200_000  # where the root has few digits to spare
    edge = torch.tensor([n * (n - 1) // 2 - 1, n * (n - 1) // 2, n * (n - 1) // 2 + 1])
    first, second = pair(edge)
    assert torch.equal(second * (second - 1) // 2 + first, edge)
    assert ((first >= 0) & (first < second)).all()


@pytest.mark.parametrize(("total", "count"), [(10, 10), (1000, 7), (1 << 40, 5000)])
def test_distinct(total: int, count: int) -> None:
    drawn = distinct(total, count, RNG().manual_seed(1))
    assert len(drawn) == len(drawn.unique()) == count
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < total
    assert torch.equal(drawn, distinct(total, count, RNG().manual_seed(1)))
    if count < total:
        assert not torch.equal(drawn, drawn.sort().values)


class Sure:
    """Stands for the run: a student of two classes that is told by the first pixel alone."""

    def predict(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, 0].float()
        return torch.stack([x - 100, 100 - x], 1) / 20


def test_choice_against_loops() -> None:
    """Of each pair the least sure mix of the grid, of the pool the least sure ones."""
    rng = RNG().manual_seed(2)
    real = torch.randint(256, (9, 1, 3, 3), generator=rng, dtype=torch.uint8)
    pool = distinct(36, 20, rng)
    found = method(shares=5)._choose(Sure(), real, pool, 6)  # type: ignore[arg-type]
    kept = []
    for number in pool.tolist():
        i, j = next((i, j) for j in range(9) for i in range(j) if j * (j - 1) // 2 + i == number)
        mixes = []
        for share in (0.3, 0.4, 0.5, 0.6, 0.7):
            mix = (share * real[i].double() + (1 - share) * real[j].double()).round()
            mixes.append((float(Sure().predict(mix[None]).softmax(1).max()), mix))
        kept.append(min(mixes, key=lambda one: one[0]))
    kept.sort(key=lambda one: one[0])
    expected = torch.stack([mix for _, mix in kept[:6]])
    assert found.dtype == torch.uint8
    assert (found.double() - expected).abs().max() <= 1  # halves may round either way


def test_choice_lies_between_the_classes() -> None:
    """Pairs of unlike classes, at the share where the student changes its mind."""
    low, high = torch.full((5, 1, 2, 2), 40), torch.full((5, 1, 2, 2), 180)
    real = torch.cat([low, high]).to(torch.uint8)
    chosen = method()._choose(Sure(), real, torch.arange(45), 20)  # type: ignore[arg-type]
    assert len(chosen) == 20
    assert ((chosen.float() - 100).abs() <= 3).all()


@pytest.mark.parametrize(("n", "budget"), [(20, 100), (20, 24), (200, None), (3, 7)])
def test_plan(n: int, budget: int | None) -> None:
    own = method(rounds=3)
    asked, pairs = own.plan(n, budget), n * (n - 1) // 2
    assert asked[0] == n
    assert len(asked) == 4
    assert max(asked[1:]) - min(asked[1:]) <= 1
    assert sum(asked) == min(budget or 13 * n, n + pairs) == own.queries(n, 10, budget)
    pools = own._pools(n, asked[1:], RNG().manual_seed(0))
    seen = torch.cat(list(pools))
    assert len(seen.unique()) == len(seen)
    assert int(seen.max()) < pairs
    for pool, rows in zip(pools, asked[1:], strict=True):
        assert rows <= len(pool) <= 10 * rows


@pytest.mark.parametrize(
    ("n", "steps", "budget", "settings", "message"),
    [
        (20, 10, 23, {}, "teacher.queries: 23 is not accepted; expected at least 24"),
        (20, 10, None, {"queries": 20}, "method.queries: 20 is not accepted; expected at least"),
        (20, 10, 50, {"queries": 60}, "method.queries: 60 is not accepted; expected at most 50"),
        (20, 4, None, {}, "budget: 4 updates is not accepted; expected at least 5"),
        (1, 10, None, {}, "data: a subset of 1 image is not"),
        (2, 10, None, {}, "method.rounds: 4 is not accepted; expected at most 1"),
    ],
)
def test_refused(
    n: int, steps: int, budget: int | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError) as error:
        method(**settings).queries(n, steps, budget)
    assert str(error.value).startswith(message)


def test_better_than_the_few_images_alone() -> None:
    """Two images of each class and 210 questions: several points above KD on the images."""
    alone = {"name": "kd", "ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1.0}
    found = [go(None, one, steps=150, seed=1).top1 for one in (alone, "bbkd")]
    assert found[1] > found[0] + 0.04
