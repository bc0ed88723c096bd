"""The loop with toy methods: what the interface promises, for families that are yet to come."""

import math
from collections.abc import Sequence

import pytest
import torch
from ran import Ran, joint
from torch import nn
from toys import network, shapes

from fskd.errors import TrainingError
from fskd.generators import Mixup
from fskd.methods.base import Method, Step, methods
from fskd.methods.compose import join
from fskd.methods.words import Phase, Term, Terms, student
from fskd.models.taps import LOGITS
from fskd.seeding import torch_generator
from fskd.train.batches import shard
from fskd.train.loop import phase_steps
from fskd.train.step import total_loss
from fskd.train.task import DistillTask
from fskd.types import Batch, Outputs, Progress, Shapes, Tools


class TwoPhases(Method):
    """An initial phase for the features, then everything."""

    def build(self, shapes: Shapes) -> None:
        self.head, self.idle = nn.Linear(32, 2), nn.Linear(2, 2)
        self.seen: list[tuple[str, float]] = []
        self.begun: list[tuple[str, int]] = []

    @property
    def phases(self) -> Sequence[Phase]:
        own = Phase(
            "first",
            trains=("student.features", "method.head"),
            passes=(student("embedding"),),
            terms="first",
            objective=frozenset(),
        )
        return own, Phase(trains=("student",), share=2.0)

    def begin(self, tools: Tools) -> None:
        self.begun.append((tools.progress.phase, tools.progress.step))

    def first(self, step: Step) -> Terms:
        assert self.head.training
        self.seen.append((step.progress.phase, step.progress.fraction))
        return {"own": Term(self.head(step.student.embedding).square().mean())}

    def terms(self, step: Step) -> Terms:
        assert not self.head.training
        self.seen.append((step.progress.phase, step.progress.fraction))
        return {}


def test_phases_train_what_they_name() -> None:
    short = Ran(TwoPhases, network(0), steps=2)  # int(2/3) = 0 steps for the first phase
    assert [phase for phase, _ in short.toy.seen] == ["main", "main"]
    assert short.toy.begun == [("main", 0)]
    net = network(0)
    start = {k: v.clone() for k, v in net.net.named_parameters()}
    found = Ran(TwoPhases, net, steps=6)
    assert found.toy.seen == [
        ("first", 0.0), ("first", 0.5),
        ("main", 0.0), ("main", 0.25), ("main", 0.5), ("main", 0.75),
    ]  # fmt: skip
    assert found.toy.begun == [("first", 0), ("main", 2)]
    twin = joint(TwoPhases, shapes(net)).methods["toy"]
    assert torch.equal(found.toy.idle.weight, twin.get_parameter("idle.weight"))
    assert not torch.equal(found.toy.head.weight, twin.get_parameter("head.weight"))
    assert not torch.equal(net.net.get_parameter("fc.weight"), start["fc.weight"])
    assert [set(record) & {"own", "ce"} for record in found.records] == [{"own"}] * 2 + [{"ce"}] * 4


def test_entering_a_phase() -> None:
    net = network(0)
    method = joint(TwoPhases, shapes(net))
    net.net.get_parameter("stages.0.0.0.weight").requires_grad_(False)
    task = DistillTask({"student": net}, method)
    first, main = method.stretches()
    task.enter(first)
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    own = "method.parts.toy."
    assert "nets.student.net.fc.weight" not in trained
    assert "nets.student.net.stages.1.0.0.weight" in trained
    assert "nets.student.net.stages.0.0.0.weight" not in trained  # frozen before, by somebody else
    assert {f"{own}head.weight", f"{own}head.bias"} < trained
    assert not {name for name in trained if "idle" in name}
    assert net.training
    task.enter(main._replace(trains=(f"{own}head",)))
    assert not net.training
    with pytest.raises(ValueError, match="trains 'tail'"):
        task.enter(main._replace(trains=("tail",)))


class Going(Method):
    """Two phases of one schedule."""

    phases = Phase("first"), Phase(restart=False)


def test_a_phase_that_does_not_restart_goes_on() -> None:
    """Rate and momentum: two phases are one, bit for bit."""
    one, two = network(0), network(0)
    Ran(Going, one, steps=6)
    Ran(Method, two, steps=6)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Diverging(Method):
    """Not finite from step 2 on."""

    passes = (student("logits"),)

    def terms(self, step: Step) -> Terms:
        factor = math.nan if step.progress.step >= 2 else 1.0
        return {"bad": Term(step.student.logits.square().mean() * factor)}


def test_non_finite_loss_names_step_and_term() -> None:
    with pytest.raises(TrainingError, match="step 2: the term 'bad' is nan"):
        Ran(Diverging, network(0))


class Silent(Method):
    """Says nothing at all."""

    phases = (Phase(objective=frozenset()),)


def test_a_step_without_a_loss_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no loss"):
        Ran(Silent, network(0))


def test_total_is_divided_by_the_unit_weights() -> None:
    found = {"ce": (2.0, 1.0), "kd": (3.0, 3.0), "at": (0.01, 100.0)}
    terms = {name: Term(torch.tensor(value), weight) for name, (value, weight) in found.items()}
    unit = frozenset({"ce", "kd", "generated"})
    assert total_loss(terms, unit).item() == pytest.approx((2 + 9 + 1) / 4)
    assert total_loss({"at": terms["at"]}, unit).item() == pytest.approx(1.0)


def test_phase_steps_use_up_the_budget() -> None:
    (one,) = joint(Silent, shapes(network(0))).stretches()
    phases = [one._replace(share=share) for share in (0.3, 0.3, 0.4)]
    for total in range(1, 40):
        assert sum(phase_steps(phases, total)) == total


def test_shards_are_the_joint_batch() -> None:
    parts = {"unlabelled": slice(6, 10), "generated": slice(10, 14)}
    whole = Batch(
        torch.arange(14.0).view(14, 1, 1, 1), torch.arange(6), torch.arange(6) + 20, parts,
        parents=torch.arange(8).view(4, 2), shares=torch.rand(4, 2),
    )  # fmt: skip
    halves = [shard(whole, rank, 2) for rank in range(2)]
    assert sorted(x for part in halves for x in part.inputs.flatten().tolist()) == list(range(14))
    for part in halves:
        assert part.indices.tolist() == (part.targets + 20).tolist()
        assert part.inputs[: part.n_real].flatten().tolist() == part.targets.tolist()
        assert (part.count("unlabelled"), part.n_generated) == (2, 2)
        assert part.inputs[part.part("generated")].min() >= 10
        assert part.parents is not None
        assert len(part.parents) == 2


class Searching(Mixup):
    """A generator that searches between epochs, as blind-region search does."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: list[float] = []

    def on_epoch(self, tools: Tools) -> None:
        gap = 0.0
        for batch in tools.batches():
            made = self(batch, tools.rng, 8, torch_generator(0, "turn")).inputs
            ours, theirs = (tools.ask(name, made, LOGITS) for name in ("student", "teacher"))
            gap += float((ours.logits - theirs.logits).abs().mean())
        self.distances.append(gap)


def test_generator_may_search_between_epochs() -> None:
    net, generator = network(0), Searching()
    method = join([("kdplus", methods.get("kdplus").Settings())]).build(shapes(net))
    found = Ran(method, net, network(1), 5, generator=generator)
    assert len(generator.distances) == 3
    assert all(distance > 0 for distance in generator.distances)
    assert found.counts.teacher_queries == 5 * 16 + 5 * 16  # training and searching
    assert found.counts.student_rows == 5 * 16


def test_a_step_hears_what_was_asked_for() -> None:
    step = Step({"teachers": (Outputs(torch.ones(2)), Outputs(torch.zeros(2)))}, Batch(
        torch.zeros(2, 1), torch.zeros(1), torch.zeros(1), {"generated": slice(1, 2)}
    ), Progress(), slice(0, 1))  # fmt: skip
    assert [len(one.logits) for one in step.each("teachers")] == [1, 1]
    assert [len(one.logits) for one in step.on("base").each("teachers")] == [2, 2]
    with pytest.raises(ValueError, match="too many values"):
        step["teachers"]
