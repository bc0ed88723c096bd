"""What every registered generator must satisfy, whatever it makes."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fskd.errors import SettingError
from fskd.generators.base import Generator, generators
from fskd.types import Batch

NAMES = generators.names()
SHARES = (0.1, 0.5, 0.9, 1.0)
PAIRED = [name for name in NAMES if "pairs" in generators.get(name).Settings.model_fields]
PAIRS = ("all", "no_self", "different_class")
SHAPES = ((1, 8, 8), (3, 8, 8), (3, 5, 9), (1, 7, 2), (3, 1, 1), (5,), (1,), (2, 7), (2, 3, 4, 5))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(rows: int, shape: tuple[int, ...] = (3, 8, 8), classes: int = 4) -> Batch:
    """Random images of distinct positions, classes in turn."""
    index = torch.randperm(5 * rows, generator=rng(rows))[:rows]
    return Batch(torch.randn(rows, *shape, generator=rng(1)), torch.arange(rows) % classes, index)


def build(name: str, **settings: object) -> Generator:
    cls = generators.get(name)
    return cls(cls.Settings(**settings))


def fitting(name: str, shape: tuple[int, ...]) -> Generator:
    """The default, or with patches of one pixel where it refuses the shape in one line."""
    generator = build(name)
    with suppress(SettingError):
        generator.check(shape)
        return generator
    fields = type(generator.settings).model_fields
    generator = build(name, side=1, **({"sides": (1, "whole")} if "sides" in fields else {}))
    generator.check(shape)
    return generator


def variants(name: str) -> Iterator[dict[str, object]]:
    """Every share, time and pair rule."""
    rules = PAIRS if name in PAIRED else (None,)
    for share, when, rule in product(SHARES, ("joint", "alternate"), rules):
        yield {"share": share, "when": when} | ({} if rule is None else {"pairs": rule})


VARIANTS = [pytest.param(n, v, id=f"{n}-{i}") for n in NAMES for i, v in enumerate(variants(n))]


def check(batch: Batch, longer: Batch, keeps_real: bool) -> None:
    """Real rows as they were (or gone), sound generated rows behind them."""
    real = batch.n_real if keeps_real else 0
    assert longer.n_real == real
    assert torch.equal(longer.inputs[:real], batch.inputs[:real])
    assert torch.equal(longer.targets, batch.targets[:real])
    assert torch.equal(longer.indices, batch.indices[:real])
    assert longer.targets.dtype == longer.indices.dtype == torch.int64
    assert len(longer.inputs) == longer.n_base
    assert longer.inputs.shape[1:] == batch.inputs.shape[1:]
    assert longer.inputs.dtype == batch.inputs.dtype
    assert longer.inputs.isfinite().all()
    if longer.parents is None:
        assert longer.shares is None
        return
    weights = longer.shares
    assert weights is not None
    assert longer.parents.shape == weights.shape
    assert len(weights) == longer.n_generated
    assert longer.parents.dtype == torch.int64
    assert weights.is_floating_point()
    assert ((weights >= 0) & (weights <= 1)).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert torch.isin(longer.parents, batch.targets).all()


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
@pytest.mark.parametrize("rows", [2, 3, 13])
def test_rows(name: str, settings: dict[str, object], rows: int) -> None:
    """Sound for every share, time and pair rule, and as many rows as asked for."""
    batch, generator = make_batch(rows), build(name, **settings)
    untouched = Batch(*(x.clone() if isinstance(x, torch.Tensor) else x for x in batch))
    for seed in range(6):
        for n in (None, 1, rows - 1, 2 * rows + 1):
            longer = generator(batch, rng(seed), n)
            if settings["when"] == "alternate":
                assert longer is batch or longer.n_real == 0
                keeps = longer is batch
            else:
                keeps = settings["share"] != 1
            check(batch, longer, keeps)
            if n is not None and longer is not batch:
                assert longer.n_generated == n
    assert torch.equal(batch.inputs, untouched.inputs)
    assert torch.equal(batch.targets, untouched.targets)
    assert torch.equal(batch.indices, untouched.indices)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    """Oblong images, single pixels, one channel and three; vectors, sequences and volumes."""
    batch, generator = make_batch(5, shape), fitting(name, shape)
    check(batch, generator(batch, rng()), keeps_real=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_stay_where_they_were(name: str, shape: tuple[int, ...]) -> None:
    """Every value lies between those that the two parents have in the same place."""
    batch = make_batch(6, shape, classes=6)  # the class identifies the row
    longer = fitting(name, shape)(batch, rng(), 20)
    assert longer.parents is not None
    one, two = batch.inputs[longer.parents].unbind(1)
    made = longer.inputs[6:]
    assert (made >= torch.minimum(one, two) - 1e-6).all()
    assert (made <= torch.maximum(one, two) + 1e-6).all()
    between = (made - two) / (one - two)
    apart = (longer.parents[:, 0] != longer.parents[:, 1])[:, None]
    means = between.flatten(1).mean(1, keepdim=True)
    found = torch.where(apart, means, longer.shares[:, :1])
    torch.testing.assert_close(found, longer.shares[:, :1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    """Images keep their type."""
    batch = make_batch(5)
    batch = batch._replace(inputs=batch.inputs.to(dtype))
    check(batch, build(name)(batch, rng()), keeps_real=True)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_deterministic(name: str, settings: dict[str, object]) -> None:
    """The same stream gives the same rows."""
    batch, generator = make_batch(7), build(name, **settings)
    for seed in range(4):
        one, two = generator(batch, rng(seed)), build(name, **settings)(batch, rng(seed))
        assert one.n_generated == two.n_generated
        assert torch.equal(one.inputs, two.inputs)
        if one.parents is not None:
            assert torch.equal(one.parents, two.parents)
            assert torch.equal(one.shares, two.shares)


@pytest.mark.parametrize("name", NAMES)
def test_another_stream(name: str) -> None:
    """Another stream gives other rows."""
    batch, generator = make_batch(8), build(name)
    made = [generator(batch, rng(seed)).inputs for seed in range(5)]
    assert all(not torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_global_streams(name: str, settings: dict[str, object]) -> None:
    """Neither torch's nor NumPy's global generator is read, moved or depended on."""
    batch, generator = make_batch(6), build(name, **settings)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    first = [generator(batch, rng(seed)).inputs for seed in range(3)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    for old, new in zip(numpy_state, np.random.get_state(), strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(old, new)
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
        again = [generator(batch, rng(seed)).inputs for seed in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_batch_of_one(name: str, settings: dict[str, object]) -> None:
    """Sound rows, or none where the rule allows no pair."""
    batch = make_batch(1)
    for seed in range(4):
        longer = build(name, **settings)(batch, rng(seed))
        if settings.get("pairs") in ("no_self", "different_class"):
            assert longer is batch
        elif longer is not batch:
            check(batch, longer, settings["when"] == "joint" and settings["share"] != 1)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("when", ["joint", "alternate"])
def test_batch_of_one_class(name: str, share: float, when: str) -> None:
    """``different_class`` finds no partner: nothing is generated and the real rows stay."""
    batch = make_batch(5, classes=1)
    generator = build(name, pairs="different_class", share=share, when=when)
    for seed in range(4):
        assert generator(batch, rng(seed)) is batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_do(name: str, rows: int) -> None:
    """No real rows, or none asked for (few rows over many processes): the batch as it is."""
    batch = make_batch(rows)
    assert build(name)(batch, rng(), 0 if rows else 4) is batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("total", [2, 3, 65])
def test_row_budget_joint(name: str, share: float, total: int) -> None:
    """Drawn and generated rows make up the student rows of a step."""
    generator = build(name, share=share)
    drawn, n = generator.schedule.rows(total)
    longer = generator(make_batch(drawn), rng(), n)
    assert len(longer.inputs) == total
    if share == 1:
        assert (longer.n_real, longer.n_generated) == (0, total)
    else:
        assert (longer.n_real, longer.n_generated) == (drawn, n)
        assert min(drawn, n) >= 1
        assert abs(n - share * total) <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [2, 3, 20, 65])
def test_row_budget_default(name: str, total: int) -> None:
    """Without a number, the share alone restores it from the real rows (to one row)."""
    generator = build(name, share=0.5)
    drawn, n = generator.schedule.rows(2 * total)
    assert generator(make_batch(drawn), rng()).n_generated == n


@pytest.mark.parametrize("name", NAMES)
def test_row_budget_of_one(name: str) -> None:
    """One row cannot be real and generated; it can be one of the two."""
    with pytest.raises(SettingError, match=r"optim\.batch_size: 1 is not accepted"):
        build(name, share=0.5).schedule.rows(1)
    for settings in ({"share": 1}, {"when": "alternate"}):
        generator = build(name, **settings)
        assert generator.schedule.rows(1) == (1, 1)
        assert len(generator(make_batch(1), rng(), 1).inputs) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 3, 65])
@pytest.mark.parametrize("share", SHARES)
def test_row_budget_alternate(name: str, total: int, share: float) -> None:
    """All real or all generated, both of which occur, always the same number."""
    generator = build(name, when="alternate", share=share)
    drawn, n = generator.schedule.rows(total)
    made = [generator(make_batch(drawn), rng(seed), n) for seed in range(20)]
    assert all(len(b.inputs) == total for b in made)
    assert {b.n_generated for b in made} == {0, total}
    assert all(b.n_real + b.n_generated == total for b in made)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probability", [0.25, 0.5, 0.8])
def test_alternate_probability(name: str, probability: float) -> None:
    """The share of real steps is the probability asked for (within four standard errors)."""
    generator = build(name, when="alternate", real_probability=probability)
    batch, stream, steps = make_batch(2, (1, 2, 2)), rng(), 2000
    real = sum(generator(batch, stream) is batch for _ in range(steps)) / steps
    assert abs(real - probability) < 4 * (probability * (1 - probability) / steps) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_step_scale(name: str) -> None:
    """Only ``alternate`` with ``scale_epochs`` lengthens training."""
    assert build(name).schedule.step_scale == 1
    assert build(name, scale_epochs=True).schedule.step_scale == 1
    assert build(name, when="alternate", real_probability=0.25).schedule.step_scale == 1
    lengthened = build(name, when="alternate", real_probability=0.25, scale_epochs=True)
    assert lengthened.schedule.step_scale == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("share", 0), ("share", -0.1), ("share", 1.01), ("share", float("nan")),
        ("share", "half"), ("when", "never"), ("real_probability", 0), ("real_probability", 1),
        ("no_such_setting", 1),
    ],
)  # fmt: skip
def test_bad_settings(name: str, setting: str, value: object) -> None:
    """Refused by name."""
    with pytest.raises(ValidationError, match=setting):
        build(name, **{setting: value})


@pytest.mark.parametrize("name", NAMES)
def test_documented(name: str) -> None:
    """Each says what it makes, and its settings are frozen."""
    generator = build(name)
    assert generators.get(name).__doc__
    with pytest.raises(ValidationError, match="frozen"):
        generator.settings.share = 0.3  # type: ignore[misc]
