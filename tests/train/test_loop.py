"""The loop with toy methods: what the interface promises, for families that are yet to come."""

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from toys import K, loader, network, shapes

from fskd.config import OptimConfig, Runtime
from fskd.errors import TrainingError
from fskd.generators import Mixup
from fskd.methods.base import (
    Method,
    Phase,
    Player,
    Step,
    Term,
    Terms,
    methods,
    student,
    teacher,
)
from fskd.methods.compose import Joint, join
from fskd.models.taps import LOGITS, FeatureNet
from fskd.teachers.base import Teacher
from fskd.train.batches import BatchMaker, shard
from fskd.train.devices import launch
from fskd.train.loop import Training, fit, phase_steps, spans
from fskd.train.step import Learner, ask, total_loss
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch
from fskd.types import Batch, Progress, Shapes, Tools


def made(kind: type[Method]) -> Joint:
    """A method with default settings, built for two equal networks."""
    return Joint({"own": kind(kind.Settings())}).build(shapes(network(0)))


def train(
    method: Joint,
    net: FeatureNet,
    known: FeatureNet | None = None,
    steps: int = 4,
    optim: OptimConfig | None = None,
) -> tuple[list[dict[str, Any]], Counts]:
    records: list[dict[str, Any]] = []
    counts = Counts()
    fabric = launch(Runtime(device="cpu"))
    watch = Watch(fabric, counts, records.append, lambda task, optimizers: None, math.inf, 1)
    fit(
        Training(
            DistillTask({"student": net}, method),
            None if known is None else Teacher(known, torch.device("cpu")),
            BatchMaker(loader(), None, method, 0, seed=0),
            steps,
            optim or OptimConfig(lr=0.05),
            fabric,
            0,
            watch,
        )
    )
    return records, counts


class Adversarial(Method):
    """A discriminator with Adam of its own, which moves in every other step."""

    passes = student("embedding"), teacher("embedding")
    players: ClassVar = {
        "discriminator": Player(
            ("method.discriminator",),
            {"name": "adam", "lr": 0.01, "weight_decay": 0.0, "schedule": "constant"},
            lambda step: step % 2 == 0,
        )
    }

    def build(self, shapes: Shapes) -> None:
        self.discriminator = nn.Linear(shapes.student.embedding[0], 1)

    def terms(self, step: Step) -> Terms:
        ours, theirs = step.student.embedding, step.teacher.embedding
        real, fake = self.discriminator(theirs), self.discriminator(ours)
        tell = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        return {
            "fool": Term(nn.functional.softplus(-fake).mean(), 0.1),
            "tell": Term(tell, by="discriminator"),
        }


def test_players_have_optimisers_and_turns_of_their_own() -> None:
    net, known, run = network(0), network(1), made(Adversarial)
    judge = run.parts["own"].discriminator
    before = judge.weight.clone()
    records, _ = train(run, net, known, steps=4, optim=OptimConfig(schedule="constant"))
    # Adam's first steps have the size of its rate, whatever the gradient; it had two turns.
    moved = (judge.weight - before).abs().max()
    assert 0.01 < moved < 2.1 * 0.01
    assert set(records[-1]) >= {"ce", "fool", "tell"}


def test_no_gradient_leaks_to_the_other_player() -> None:
    """A player's loss reaches what it trains: the student learns as if the judge were frozen."""
    net, known, run = network(0), network(1), made(Adversarial)
    task = DistillTask({"student": net}, run)
    (stretch,) = run.stretches()
    task.enter(stretch)
    learner = Learner(task, stretch, OptimConfig(lr=1e-9), launch(Runtime(device="cpu")))
    kept: dict[str, list[Tensor]] = {}
    for move in learner.moves:
        move.optimizer.zero_grad = lambda *_, **__: None  # type: ignore[method-assign]
        kept[move.name] = move.parameters
    batch = BatchMaker(loader(), None, run, 0, seed=0).batch(0, stretch)
    (answers,) = ask(Teacher(known, torch.device("cpu")), batch, [stretch], learner.fabric)
    state = {name: value.clone() for name, value in task.state_dict().items()}
    terms = learner.update(batch, answers, Progress(), 1.0)
    assert terms["tell"].by == "discriminator"
    found = {name: [p.grad.clone() for p in own] for name, own in kept.items()}
    task.load_state_dict(state)
    for name, wanted in (("main", ("ce", "fool")), ("discriminator", ("tell",))):
        task.load_state_dict(state)
        loss = {n: t for n, t in task(batch, answers, Progress(), stretch).items() if n in wanted}
        expected = torch.autograd.grad(total_loss(loss, run.unit), kept[name])
        for one, other in zip(found[name], expected, strict=True):
            torch.testing.assert_close(one, other)


class Jacobian(Method):
    """Reads gradients with respect to the images."""

    passes = student("logits", input_grad=True), teacher("logits", input_grad=True)

    def terms(self, step: Step) -> Terms:
        def slope(logits: Tensor, keep: bool) -> Tensor:
            chosen = logits.gather(1, step.batch.targets[:, None]).sum()
            return torch.autograd.grad(chosen, step.batch.inputs, create_graph=keep)[0]

        goal = slope(step.teacher.logits, False).detach()
        difference = slope(step.student.logits, True) - goal
        return {"jacobian": Term(difference.square().mean())}


def test_method_with_input_gradients() -> None:
    net, known = network(0), network(1)
    records, _ = train(made(Jacobian), net, known)
    assert records[-1]["jacobian"] > 0
    assert all(p.grad is None for p in known.parameters())


class TeacherInBatchMode(Method):
    """OFD's teacher uses batch statistics."""

    passes = (teacher("logits", mode="batch"),)

    def terms(self, step: Step) -> Terms:
        return {"seen": Term(step.teacher.logits.std())}


def test_teacher_in_batch_mode() -> None:
    net, known = network(0), network(1)
    before = {k: v.clone() for k, v in known.state_dict().items()}
    records, counts = train(made(TeacherInBatchMode), net, known, steps=2)
    assert counts.teacher_queries == 2 * 8
    assert all(torch.equal(v, before[k]) for k, v in known.state_dict().items())
    with torch.no_grad():
        known.net.train()
        expected = known(loader().batch(0).inputs).logits.std()
    assert records[0]["seen"] == pytest.approx(expected.item(), rel=1e-6)


class TwoPhases(Method):
    """An initial phase for the features, then everything."""

    passes = (student("embedding"),)
    phases = (
        Phase(
            "first", 1.0, ("student.features", "method.head"), terms="own", objective=frozenset()
        ),
        Phase(trains=("student",), share=2.0),
    )
    seen: list[tuple[str, float]]

    def build(self, shapes: Shapes) -> None:
        self.head, self.idle, self.seen = nn.Linear(32, 2), nn.Linear(2, 2), []

    def own(self, step: Step) -> Terms:
        self.seen.append((step.progress.phase, step.progress.fraction))
        assert self.head.training
        return {"own": Term(self.head(step.student.embedding).square().mean())}

    def terms(self, step: Step) -> Terms:
        self.seen.append((step.progress.phase, step.progress.fraction))
        assert not self.head.training
        return {}


def test_phases_train_what_they_name() -> None:
    net, run = network(0), made(TwoPhases)
    method = run.methods["own"]
    start = {k: v.clone() for k, v in net.net.named_parameters()}
    idle = method.idle.weight.clone()
    train(run, net, steps=2)  # int(2/3) = 0 steps for the first phase
    assert [phase for phase, _ in method.seen] == ["main", "main"]
    method.seen.clear()
    net = network(0)
    train(run, net, steps=6)
    assert method.seen == [
        ("first", 0.0), ("first", 0.5),
        ("main", 0.0), ("main", 0.25), ("main", 0.5), ("main", 0.75),
    ]  # fmt: skip
    assert torch.equal(method.idle.weight, idle)
    assert not torch.equal(net.net.get_parameter("fc.weight"), start["fc.weight"])
    net = network(0)
    task = DistillTask({"student": net}, run)
    task.enter(run.stretches()[0])
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert "nets.student.net.fc.weight" not in trained
    assert {"method.parts.own.head.weight", "method.parts.own.head.bias"} < trained
    assert not {name for name in trained if "idle" in name}
    assert net.training
    task.enter(run.stretches()[0]._replace(trains=("method.parts.own.head",)))
    assert not net.training
    with pytest.raises(ValueError, match="trains 'nobody'"):
        task.enter(run.stretches()[0]._replace(trains=("nobody",)))


class Beginning(Method):
    """Looks at networks and data when its phases begin."""

    phases = Phase("first"), Phase(share=2.0)
    calls: list[tuple[str, int]]

    def begin(self, tools: Tools) -> None:
        rows = sum(batch.n_real for batch in tools.batches())
        for net in ("student", "teacher"):
            taps = tools.ask(net, torch.zeros(2, 1, 8, 8), frozenset({"logits", "embedding"}))
            assert taps.logits.shape == (2, K)
            assert not taps.embedding.requires_grad
        self.calls.append((tools.progress.phase, rows))


def test_begin_is_called_once_a_phase_and_counted() -> None:
    net, known, run = network(0), network(1), made(Beginning)
    method = run.methods["own"]
    method.calls = []
    _, counts = train(run, net, known, steps=6)  # 8 of 12 rows a step
    assert method.calls == [("first", 16), ("main", 8)]
    assert counts.teacher_queries == 2 * 2
    assert net.training


class Going(Method):
    """Two phases of one schedule."""

    phases = Phase("first"), Phase(restart=False)


def test_a_phase_that_does_not_restart_goes_on() -> None:
    """Rate and momentum: two phases are one, bit for bit."""
    one, two = network(0), network(0)
    train(made(Going), one, steps=6)
    train(Joint({"ce": methods.get("ce")(methods.get("ce").Settings())}), two, steps=6)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (first, second) = spans(made(Going).stretches(), 6)
    assert (first.schedule_start, first.schedule_end) == (0, 6)
    assert (second.start, second.schedule_start) == (3, 0)


class Diverging(Method):
    """Not finite from step 2 on."""

    passes = (student("logits"),)

    def terms(self, step: Step) -> Terms:
        bad = math.nan if step.progress.step >= 2 else 1.0
        return {"bad": Term(step.student.logits.mean() * bad)}


def test_non_finite_loss_names_step_and_term() -> None:
    with pytest.raises(TrainingError, match="step 2: the term 'bad' is nan"):
        train(made(Diverging), network(0))


def test_total_is_divided_by_the_unit_weights() -> None:
    terms = {
        "ce": Term(torch.tensor(2.0)),
        "kd": Term(torch.tensor(3.0), 3.0),
        "at": Term(torch.tensor(0.01), 100.0),
    }
    unit = frozenset({"ce", "kd", "generated"})
    assert total_loss(terms, unit).item() == pytest.approx((2 + 9 + 1) / 4)
    assert total_loss({"at": terms["at"]}, unit).item() == pytest.approx(1.0)


def test_phase_steps_use_up_the_budget() -> None:
    (whole,) = made(Jacobian).stretches()
    phases = [whole._replace(share=share) for share in (0.3, 0.3, 0.4)]
    for total in range(1, 40):
        assert sum(phase_steps(phases, total)) == total


def test_shards_are_the_joint_batch() -> None:
    joint = Batch(
        torch.arange(10.0).view(10, 1, 1, 1), torch.arange(6), torch.arange(6) + 20,
        {"generated": slice(6, 10)},
        parents=torch.arange(8).view(4, 2), shares=torch.rand(4, 2),
    )  # fmt: skip
    parts = [shard(joint, rank, 2) for rank in range(2)]
    assert sorted(x for part in parts for x in part.inputs.flatten().tolist()) == list(range(10))
    for part in parts:
        assert part.indices.tolist() == (part.targets + 20).tolist()
        assert part.inputs[: part.n_real].flatten().tolist() == part.targets.tolist()
        assert part.n_generated == 2
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
            made = self(batch, tools.rng).inputs
            ours, theirs = (tools.ask(net, made, LOGITS) for net in ("student", "teacher"))
            gap += float((ours.logits - theirs.logits).abs().mean())
        self.distances.append(gap)


def test_generator_may_search_between_epochs() -> None:
    generator = Searching()
    method = join([("kdplus", methods.get("kdplus").Settings())]).build(shapes(network(0)))
    watch = Watch(launch(Runtime(device="cpu")), Counts(), lambda r: None, lambda t, o: None)
    fit(
        Training(
            DistillTask({"student": network(0)}, method),
            Teacher(network(1), torch.device("cpu")),
            BatchMaker(loader(), generator, method, 8, seed=0),
            5,
            OptimConfig(lr=0.05),
            watch.fabric,
            0,
            watch,
        )
    )
    assert len(generator.distances) == 3
    assert all(distance > 0 for distance in generator.distances)
    assert watch.counts.teacher_queries == 5 * 16 + 5 * 16  # training and searching
