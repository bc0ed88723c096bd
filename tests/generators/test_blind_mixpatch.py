"""The search finds the region in which student and teacher differ most, and disturbs nothing."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from ran import Ran
from rich.console import Console
from torch import Tensor
from toys import images, network, shapes

from fskd.config import Runtime
from fskd.errors import SettingError, TrainingError
from fskd.generators.blind_mixpatch import BlindMixPatch, BlindMixPatchSettings
from fskd.generators.mixpatch import MixPatch, MixPatchSettings
from fskd.methods.base import methods
from fskd.methods.compose import Joint, join
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.tables import show_results
from fskd.runs.estimate import cost
from fskd.runs.prepare import prepare
from fskd.runs.runner import run
from fskd.runs.screen import Screen
from fskd.runs.session import Session
from fskd.types import Batch, Outputs, Progress, Tools

N = 24


def generator(**settings: object) -> BlindMixPatch:
    return BlindMixPatch(BlindMixPatchSettings(**settings))


class World:
    """A teacher that always says the same, and a student whose distance from it is told.

    Args:
        gap: From images to the distance of the student's logits, (rows,).
    """

    def __init__(self, gap: Any) -> None:
        self.gap, self.asked, self.said = gap, list[tuple[str, Tensor]](), list[str]()

    def ask(self, name: str, inputs: Tensor, taps: frozenset[str]) -> Outputs:
        self.asked.append((name, inputs))
        logits = torch.zeros(len(inputs), 3)
        if name == "student":
            logits[:, 0] = self.gap(inputs)
        return Outputs(logits)

    def batches(self) -> Iterator[Batch]:
        for half in range(2):  # rows that are all 0 or all 1
            bright = torch.arange(N) % 2
            rows = bright.float().view(N, 1, 1, 1).expand(N, 1, 8, 8)
            yield Batch(rows, bright, torch.arange(N) + N * half)

    def tools(self, epoch: int, seed: int = 0) -> Tools:
        rng = torch.Generator().manual_seed(seed)
        return Tools(Progress(epoch=epoch), self.ask, self.batches, rng, self.said.append)


def uneven(inputs: Tensor) -> Tensor:
    """Large where patches of one image differ."""
    return 20 * inputs.flatten(1).std(1)


def grey(inputs: Tensor) -> Tensor:
    """Large where an image lies in the middle between black and white and is even."""
    middle = 1 - 2 * (inputs.flatten(1).mean(1) - 0.5).abs()
    return 20 * middle * (inputs.flatten(1).std(1) < 1e-6)


def sharp(inputs: Tensor) -> Tensor:
    """Large where patches differ and hold one of the two images alone."""
    pure = 1 - 4 * (inputs * (1 - inputs)).flatten(1).mean(1)
    return 20 * inputs.flatten(1).std(1) * pure.clamp(min=0) ** 4


@pytest.mark.parametrize(
    ("gap", "alpha", "side"),
    [(sharp, 0.02, 4), (grey, 50.0, "whole"), (uneven, 0.02, 4)],
)
def test_finds_where_the_student_is_blind(gap: Any, alpha: float, side: object) -> None:
    """A student that differs from the teacher on some mixes only: these are found."""
    world = World(gap)
    mixes = generator(alphas=(1.0, 0.02, 50.0), sides=("whole", 4), every=5)
    assert mixes.region == (1.0, "half")
    mixes.on_epoch(world.tools(5))
    assert mixes.region == (alpha, side)
    (record,) = mixes.found
    assert (record["epoch"], record["alpha"], record["side"]) == (5, alpha, side)
    # Of 3 x 2 regions the first is not asked about; both networks saw every row.
    assert record["rows"] == 5 * 2 * N
    for name in ("student", "teacher"):
        assert sum(len(rows) for asked, rows in world.asked if asked == name) == 5 * 2 * N
    for (one, ours), (two, theirs) in zip(world.asked[::2], world.asked[1::2], strict=True):
        assert (one, two) == ("student", "teacher")
        assert ours is theirs
    (line,) = world.said
    assert line.startswith("epoch 5: student and teacher differ most on mixes of alpha")
    assert f"alpha {alpha:g}, side {side} (" in line


def test_what_is_compared() -> None:
    """The mean of T^2 KL over batches, at the search's temperature, of mixes of that region."""
    world, temperature = World(uneven), 2.0
    mixes = generator(
        alphas=(1.0, 0.3), sides=("whole", 2), every=1, search_temperature=temperature
    )
    mixes.on_epoch(world.tools(1, seed=4))
    rng, sums = torch.Generator().manual_seed(4), dict.fromkeys(mixes.regions, 0.0)
    assert mixes.regions == [(1.0, 2), (0.3, "whole"), (0.3, 2)]
    for batch in world.batches():
        for alpha, side in mixes.regions:
            mixer = MixPatch(MixPatchSettings(alpha=alpha, side=side, share=1))
            made = mixer(batch, rng)
            assert made.n_real == 0
            for gap in uneven(made.inputs).double().tolist():
                total = math.exp(gap / temperature) + 2
                student = [math.exp(gap / temperature) / total, 1 / total, 1 / total]
                kl = sum(1 / 3 * math.log(1 / 3 / s) for s in student)
                sums[alpha, side] += temperature**2 * kl / N / 2
    best = max(sums, key=lambda region: sums[region])
    assert mixes.region == best
    assert mixes.found[0]["divergence"] == pytest.approx(sums[best], rel=1e-5)


def test_the_region_is_used() -> None:
    """Rows are those of ``mixpatch`` with what was found, from the same draws."""
    mixes = generator(alphas=(1.0, 0.02, 50.0), sides=("whole", 4), every=1)
    mixes.on_epoch(World(sharp).tools(1))
    batch = next(World(sharp).batches())
    plain = MixPatch(MixPatchSettings(alpha=0.02, side=4))
    ours, theirs = (one(batch, torch.Generator().manual_seed(2)) for one in (mixes, plain))
    assert torch.equal(ours.inputs, theirs.inputs)


def test_when() -> None:
    """Every so many epochs, not at the start; also where an epoch is skipped."""
    world, mixes = World(uneven), generator(every=4)
    for epoch in (0, 1, 3, 4, 5, 7, 9, 11, 17, 19, 20):
        mixes.on_epoch(world.tools(epoch))
    assert [record["epoch"] for record in mixes.found] == [4, 9, 17, 20]
    longer = generator(every=50, when="alternate", real_probability=0.3, scale_epochs=True)
    assert longer.every == 166  # as published, int(50 / 0.3)
    assert generator(every=50, when="alternate", real_probability=0.3).every == 50


def test_goes_on_from_its_state(tmp_path: Path) -> None:
    """Saved and read without running code, it searches when the other one does, as it does."""
    one, two = generator(every=4), generator(every=4)
    one.on_epoch(World(uneven).tools(4))
    torch.save(one.state_dict(), tmp_path / "state")
    two.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert two.region == one.region
    assert list(two.found) == list(one.found)
    for each in (one, two):
        each.on_epoch(World(sharp).tools(6))
        each.on_epoch(World(sharp).tools(8))
    assert list(two.found) == list(one.found)
    assert len(two.found) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_number_is_an_error(bad: float) -> None:
    """In one line with the region; what was found before stays."""
    mixes = generator(every=1)
    with pytest.raises(TrainingError, match=r"^epoch 3: the divergence .* is (nan|inf)$"):
        mixes.on_epoch(World(lambda x: torch.full((len(x),), bad)).tools(3))
    assert not mixes.found


def test_no_pairs() -> None:
    """Where no row has a partner, nothing is asked and all stays as it was."""
    world, mixes = World(uneven), generator(every=1, pairs="different_class")
    dark = [Batch(b.inputs, b.targets * 0, b.indices) for b in world.batches()]
    mixes.on_epoch(world.tools(1)._replace(batches=lambda: iter(dark)))
    assert (mixes.found, world.asked, world.said) == ([], [], [])


def test_settings() -> None:
    for settings in (
        {"alphas": (0.0, 1.0)}, {"alphas": ()}, {"sides": ("third",)}, {"every": 0},
        {"search_temperature": 0}, {"alphas": (1.0,), "sides": ("whole", "half")},
        {"alphas": (1.0, 1.0)}, {"sides": ("half", "half")},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            generator(**settings)
    generator(alphas=(1.0, 2.0, 3.0), sides=("half",)).check((1, 8, 8))
    with pytest.raises(
        SettingError, match=r"^generator\.sides: 3 is not .*: 1, 2, 4, 8, half, who"
    ):
        generator(sides=("whole", 3)).check((1, 8, 8))
    with pytest.raises(SettingError, match=r"^generator\.side: 3 is not"):
        generator(side=3).check((1, 8, 8))


@pytest.mark.parametrize("method", ["mixup", "ce+mixup"])
def test_without_a_teacher(method: str) -> None:
    with pytest.raises(SettingError, match=r"^generator: 'blind_mixpatch' is not .*no teacher"):
        resolve({"method": method, "generator": "blind_mixpatch"})


# --- in a training -----------------------------------------------------------------------------


def kdplus() -> Joint:
    return join([("kdplus", methods.get("kdplus").Settings())]).build(shapes(network(0)))


def test_others_draws_are_not_disturbed() -> None:
    """With searches that choose what was in use, training is what it is without any."""
    one = {"alpha": 0.5, "side": 4}
    plain = Ran(kdplus(), network(0), network(1), 6, generator=MixPatch(MixPatchSettings(**one)))
    # Whichever is chosen draws as the other does.
    searching = generator(**one, every=1)
    searching._found = [{"epoch": 0, **one}]
    searching.regions = [(0.5, 4), (0.5, 4)]
    found = Ran(kdplus(), network(0), network(1), 6, generator=searching)
    assert [record["epoch"] for record in searching.found] == [0, 1, 2, 3]
    for ours, theirs in zip(plain.records, found.records, strict=True):
        assert ours == theirs
    weights = zip(plain.task.state_dict().items(), found.task.state_dict().values(), strict=True)
    for (name, ours), theirs in weights:
        assert torch.equal(ours, theirs), name
    assert found.counts.student_rows == plain.counts.student_rows
    asked = found.counts.teacher_queries - plain.counts.teacher_queries
    assert asked == sum(record["rows"] for record in searching.found[1:])
    assert asked > 0


def test_only_where_generated_rows_are_read(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A phase that mixes nothing searches nothing."""
    raw = merge(tiny, {"method": "sskd+kdplus", "budget": {"steps": 50}})
    raw = merge(raw, {"generator": {"name": "blind_mixpatch", "every": 1}})
    result = run(resolve(raw), Session(Runtime(out=str(tmp_path))))
    first = next(iter(result.phases.values()))
    before = first * 32 // result.n_train
    assert result.searches
    assert min(record["epoch"] for record in result.searches) >= before >= 2


class Lines(Screen):
    def __init__(self) -> None:
        self.lines = list[str]()

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_in_a_run(tiny: dict[str, Any], out: Path) -> None:
    """Said, kept in the result, shown, counted, and foreseen."""
    raw = merge(tiny, {"method": "pe", "budget": {"steps": 4}, "generator": {"every": 1}})
    config, screen = resolve(raw), Lines()
    found = run(config, Session(Runtime(out=str(out)), screen))
    assert [record["epoch"] for record in found.searches] == [3, 6]
    assert [line for line in screen.lines if line.startswith("epoch")] == [
        f"epoch {r['epoch']}: student and teacher differ most on mixes of alpha {r['alpha']:g},"
        f" side {r['side']} (divergence {r['divergence']:.4g})"
        for r in found.searches
    ]
    assert config.generator is not None
    kept = ("share", "when", "real_probability", "scale_epochs")
    same = {name: config.generator.model_dump()[name] for name in kept}
    plain = resolve({**raw, "generator": {"name": "mixpatch", **same}})
    without = run(plain, Session(Runtime(out=str(out))))
    assert without.searches == []
    assert (found.steps, found.student_rows) == (without.steps, without.student_rows)
    searched = sum(record["rows"] for record in found.searches)
    assert found.teacher_queries - without.teacher_queries == searched > 0
    planned = [cost(prepare(one, out)).teacher_queries for one in (config, plain)]
    assert planned[0] - planned[1] == searched
    console = Console(width=200, record=True)
    show_results([found], console)
    assert "searches             2, the last: epoch 6, alpha" in console.export_text()


def test_images_are_those_of_the_subset() -> None:
    """One pass: every image of the subset is asked about."""
    assert len(images().targets) == 12
    seen = set[float]()

    class Looking(BlindMixPatch):
        def on_epoch(self, tools: Tools) -> None:
            for batch in tools.batches():
                seen.update(batch.indices.tolist())

    Ran(kdplus(), network(0), network(1), 1, generator=Looking())
    assert seen == set(range(12))
