"""The loop with toy methods: what the interface promises, for families that are yet to come."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fskd.config import OptimConfig, Runtime
from fskd.data.augment import AugmentSettings
from fskd.data.loader import DeviceLoader
from fskd.errors import TrainingError
from fskd.generators import Mixup
from fskd.methods.base import (
    Losses,
    Method,
    MethodSettings,
    ParamGroup,
    Phase,
    Reads,
    label_terms,
)
from fskd.methods.kdplus import KDPlus, KDPlusSettings
from fskd.models.catalog import build
from fskd.models.taps import LOGITS, FeatureNet
from fskd.teachers.base import Teacher
from fskd.train.batches import BatchMaker, shard
from fskd.train.devices import launch
from fskd.train.loop import Training, fit, phase_steps, total_loss
from fskd.train.optim import build_optimizers, lr_factor, set_lr
from fskd.train.task import DistillTask
from fskd.train.watch import Counts, Watch
from fskd.types import Batch, EpochContext, ImageSet, Outputs, Progress, Shapes

N, K = 12, 3
BOTH = frozenset({"logits", "embedding"})


def images() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 1, 8, 8), generator=rng, dtype=torch.uint8)
    names = tuple("abc")
    return ImageSet(pixels, torch.arange(N) % K, names, (0.5,), (0.25,), "f", (1, 8, 8))


def network(seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    return FeatureNet(build("cnn_tiny", K, 1))


def shapes(net: FeatureNet) -> Shapes:
    taps = net.tap_shapes((1, 8, 8))
    return Shapes(K, N, (taps,), taps, images().targets, (1, 8, 8))


class Ordinary(Method):
    """Labels only."""

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(),)

    def forward(
        self, students: tuple[Outputs, ...], teacher: Outputs, batch: Batch, progress: Progress
    ) -> Losses:
        return label_terms(students[0], batch)

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": 1.0}


def train(
    method: Method,
    student: FeatureNet,
    teacher: FeatureNet | None = None,
    steps: int = 4,
    optim: OptimConfig | None = None,
) -> tuple[list[dict[str, Any]], Counts]:
    loader = DeviceLoader(images(), torch.arange(N), 8, AugmentSettings(), 0, torch.device("cpu"))
    records: list[dict[str, Any]] = []
    counts = Counts()
    fabric = launch(Runtime(device="cpu"))
    watch = Watch(fabric, counts, records.append, lambda task, optimizers: None, math.inf, 1)
    fit(
        Training(
            DistillTask([student], method),
            None if teacher is None else Teacher(teacher, torch.device("cpu")),
            BatchMaker(loader, None, method, 0, seed=0),
            steps,
            optim or OptimConfig(lr=0.05),
            fabric,
            0,
            watch,
        )
    )
    return records, counts


class Adversarial(Ordinary):
    """A discriminator with Adam of its own, trained against the student in one backward pass."""

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__(settings, shapes)
        self.discriminator = nn.Linear(shapes.students[0].embedding[0], 1)

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(reads=Reads(student=BOTH, teacher=BOTH)),)

    def forward(
        self, students: tuple[Outputs, ...], teacher: Outputs, batch: Batch, progress: Progress
    ) -> Losses:
        ours, theirs = students[0].embedding, teacher.embedding
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, frozen, (ours,))
        real, fake = self.discriminator(theirs), self.discriminator(ours.detach())
        return {
            **label_terms(students[0], batch),
            "fool": nn.functional.softplus(-judged).mean(),
            "tell": nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean(),
        }

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": 1.0, "fool": 0.1, "tell": 1.0}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(list(self.discriminator.parameters()), 0.01, 0.0, "adam")]


def test_adversarial_method_has_an_optimiser_of_its_own() -> None:
    student, teacher = network(0), network(1)
    method = Adversarial(MethodSettings(), shapes(student))
    before = method.discriminator.weight.clone()
    records, _ = train(method, student, teacher, steps=3)
    # Adam's first steps have the size of its rate, whatever the gradient.
    moved = (method.discriminator.weight - before).abs().max()
    assert 0.0 < moved < 3.1 * 0.01
    assert set(records[-1]) >= {"ce", "fool", "tell"}


class Jacobian(Ordinary):
    """Reads gradients with respect to the images."""

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        logits = frozenset({"logits"})
        return (Phase(reads=Reads(student=logits, teacher=logits, input_grad=True)),)

    def forward(
        self, students: tuple[Outputs, ...], teacher: Outputs, batch: Batch, progress: Progress
    ) -> Losses:
        def slope(logits: Tensor, keep: bool) -> Tensor:
            chosen = logits.gather(1, batch.targets[:, None]).sum()
            return torch.autograd.grad(chosen, batch.inputs, create_graph=keep)[0]

        goal = slope(teacher.logits, False).detach()
        difference = slope(students[0].logits, True) - goal
        return {**label_terms(students[0], batch), "jacobian": difference.square().mean()}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": 1.0, "jacobian": 1.0}


def test_method_with_input_gradients() -> None:
    student, teacher = network(0), network(1)
    records, _ = train(Jacobian(MethodSettings(), shapes(student)), student, teacher)
    assert records[-1]["jacobian"] > 0
    assert all(p.grad is None for p in teacher.parameters())


class TeacherInTrainMode(Ordinary):
    """OFD's teacher uses batch statistics."""

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        return (Phase(reads=Reads(teacher=frozenset({"pre"}), teacher_train=True)),)


def test_teacher_in_train_mode() -> None:
    student, teacher = network(0), network(1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    train(TeacherInTrainMode(MethodSettings(), shapes(student)), student, teacher)
    moved = {k for k, v in teacher.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("num_batches" in name for name in moved)  # it ran, and its statistics stayed


class TwoPhases(Ordinary):
    """An initial phase for the features, then everything."""

    seen: list[tuple[str, float]]

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__(settings, shapes)
        self.head, self.idle, self.seen = nn.Linear(32, 2), nn.Linear(2, 2), []

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        first = Phase("first", 1.0, ("students.features", "method.head"), Reads(student=BOTH))
        return (first, Phase(trains=("students",), reads=Reads(student=BOTH), share=2.0))

    def forward(
        self, students: tuple[Outputs, ...], teacher: Outputs, batch: Batch, progress: Progress
    ) -> Losses:
        self.seen.append((progress.phase, progress.fraction))
        assert self.head.training is (progress.phase == "first")
        own = self.head(students[0].embedding).square().mean()
        return {"own": own} if progress.phase == "first" else label_terms(students[0], batch)

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"own": 1.0, "ce": 1.0}


def test_phases_train_what_they_name() -> None:
    student = network(0)
    method = TwoPhases(MethodSettings(), shapes(student))
    start = {k: v.clone() for k, v in student.net.named_parameters()}
    idle = method.idle.weight.clone()
    train(method, student, steps=2)  # int(2/3) = 0 steps for the first phase
    assert [phase for phase, _ in method.seen] == ["main", "main"]
    method.seen.clear()
    student = network(0)
    train(method, student, steps=6)
    assert method.seen == [
        ("first", 0.0), ("first", 0.5),
        ("main", 0.0), ("main", 0.25), ("main", 0.5), ("main", 0.75),
    ]  # fmt: skip
    assert torch.equal(method.idle.weight, idle)
    assert not torch.equal(student.net.get_parameter("fc.weight"), start["fc.weight"])
    student = network(0)
    task = DistillTask([student], method)
    task.enter(method.phases()[0])
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert "students.0.net.fc.weight" not in trained
    assert {"method.head.weight", "method.head.bias"} < trained
    assert not {name for name in trained if "idle" in name}
    assert student.training
    task.enter(Phase(trains=("method.head",), reads=Reads(student=frozenset())))
    assert not student.training


class Epochs(Ordinary):
    """Looks at the networks between epochs."""

    calls: list[tuple[int, int]]

    def on_epoch(self, context: EpochContext) -> None:
        batches: Iterator[Batch] = context.batches()
        rows = sum(batch.n_real for batch in batches)
        student = context.students[0]
        taps = student(torch.zeros(2, 1, 8, 8), BOTH)
        assert taps.logits.shape == (2, K)
        assert not taps.embedding.requires_grad
        self.calls.append((context.progress.epoch, rows))


def test_on_epoch() -> None:
    student = network(0)
    method = Epochs(MethodSettings(), shapes(student))
    method.calls = []
    train(method, student, steps=5)  # 8 of 12 rows a step
    assert [epoch for epoch, _ in method.calls] == [0, 1, 2]
    assert [rows for _, rows in method.calls] == [16, 8, 16]
    assert student.training


class Diverging(Ordinary):
    """Not finite from step 2 on."""

    def forward(
        self, students: tuple[Outputs, ...], teacher: Outputs, batch: Batch, progress: Progress
    ) -> Losses:
        terms = label_terms(students[0], batch)
        return {**terms, "bad": terms["ce"] * (math.nan if progress.step >= 2 else 1.0)}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ce": 1.0, "bad": 1.0}


def test_non_finite_loss_names_step_and_term() -> None:
    student = network(0)
    with pytest.raises(TrainingError, match="step 2: the term 'bad' is nan"):
        train(Diverging(MethodSettings(), shapes(student)), student)


def test_total_is_divided_by_the_unit_weights() -> None:
    losses = {"ce": torch.tensor(2.0), "kd": torch.tensor(3.0), "at": torch.tensor(0.01)}
    weights = {"ce": 1.0, "kd": 3.0, "at": 100.0, "generated": 5.0}
    unit = frozenset({"ce", "kd", "generated"})
    assert total_loss(losses, weights, unit).item() == pytest.approx((2 + 9 + 1) / 4)
    assert total_loss({"at": losses["at"]}, weights, unit).item() == pytest.approx(1.0)
    with pytest.raises(TrainingError):
        total_loss({}, weights, unit)


def test_phase_steps_use_up_the_budget() -> None:
    phases = (Phase("a", 0.3), Phase("b", 0.3), Phase("c", 0.4))
    for total in range(1, 40):
        assert sum(phase_steps(phases, total)) == total


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "milestones", "constant"])
def test_schedules(schedule: Any) -> None:
    config = OptimConfig(schedule=schedule)
    factors = [lr_factor(config, i / 1000) for i in range(1001)]
    assert max(factors) == pytest.approx(1.0)
    assert all(0 <= factor <= 1 for factor in factors)
    end = {"onecycle": 0.0, "cosine": 0.0, "milestones": 1e-3, "constant": 1.0}[schedule]
    assert factors[-1] == pytest.approx(end, abs=1e-9)


def test_onecycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=101, final_div_factor=1e12, cycle_momentum=False
    )
    config = OptimConfig(lr=0.2)
    # torch counts its phases in whole steps: the rise ends one step before 30 % of 101.
    for step in range(101):
        position = step / 29.3 * 0.3 if step <= 29.3 else 0.3 + 0.7 * (step - 29.3) / 70.7
        assert schedule.get_last_lr()[0] == pytest.approx(
            0.2 * lr_factor(config, position), abs=1e-6
        )
        optimizer.step()
        if step < 100:
            schedule.step()


def test_optimizers_leave_frozen_parameters_out() -> None:
    free, frozen = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
    groups = [ParamGroup([frozen]), ParamGroup([nn.Parameter(torch.zeros(2))], 0.5, 0.0)]
    (sgd,) = build_optimizers([free, frozen], groups, OptimConfig(lr=0.4))
    set_lr([sgd], 0.5)
    assert [len(group["params"]) for group in sgd.param_groups] == [1, 1]
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.2, 0.1])
    assert [group["weight_decay"] for group in sgd.param_groups] == [5e-4, 0.0]


def test_cached_logits_are_the_teachers() -> None:
    teacher = Teacher(network(1), torch.device("cpu"))
    loader = DeviceLoader(images(), torch.arange(N), 8, AugmentSettings(), 0, torch.device("cpu"))
    batch = loader.batch(0)
    made = batch._replace(inputs=torch.cat([batch.inputs, batch.inputs[:3] * 0.5]), n_generated=3)
    read = frozenset({"logits"})
    plain = teacher.outputs(made, read)
    assert teacher.queries == 11
    inputs = torch.cat([loader.batch(step).inputs for step in range(3)])
    order = torch.cat([loader.batch(step).indices for step in range(3)])
    first = torch.stack([(order == i).nonzero()[0, 0] for i in range(N)])
    teacher.remember([inputs[first[:7]], inputs[first[7:]]], N, N)
    assert teacher.queries == 11 + N
    torch.testing.assert_close(teacher.outputs(made, read).logits, plain.logits)
    assert teacher.queries == 11 + N + 3
    torch.testing.assert_close(teacher.outputs(batch, read).logits, plain.logits[:8])
    assert teacher.queries == 11 + N + 3
    assert not teacher.outputs(made, read).logits.requires_grad


@pytest.mark.parametrize("n_kept", [1, 5, N - 1, N])
def test_the_first_examples_are_remembered_when_one_is_needed(n_kept: int) -> None:
    teacher = Teacher(network(1), torch.device("cpu"))
    whole = DeviceLoader(images(), torch.arange(N), N, AugmentSettings(), 0, torch.device("cpu"))
    rows = whole.batch(0)
    in_order = rows.inputs[rows.indices.argsort()]
    expected = teacher.outputs(rows, frozenset({"logits"})).logits
    given: list[int] = []

    def parts() -> Iterator[torch.Tensor]:
        for part in in_order[:n_kept].split(4):
            given.append(len(part))
            yield part

    teacher.queries = 0
    teacher.remember(parts(), n_kept, N)
    assert teacher.queries == n_kept
    assert not given, "nothing is asked before it is needed"
    for turn in (1, 2):
        found = teacher.outputs(rows, frozenset({"logits"})).logits
        torch.testing.assert_close(found, expected)
        assert sum(given) == n_kept
        assert teacher.queries == n_kept + turn * (N - n_kept)
    made = rows._replace(inputs=torch.cat([rows.inputs, rows.inputs[:2] + 1]), n_generated=2)
    both = teacher.outputs(made, frozenset({"logits"})).logits
    torch.testing.assert_close(both[:N], expected)
    torch.testing.assert_close(both[N:], teacher.ask(made.inputs[N:]).logits)


def test_optimisers_are_fused() -> None:
    weights = [torch.nn.Parameter(torch.ones(3))]
    adam = ParamGroup([torch.nn.Parameter(torch.ones(3))], optimizer="adam")
    for optimizer in build_optimizers(weights, [adam], OptimConfig()):
        assert optimizer.defaults["fused"] is True
    (elsewhere,) = build_optimizers(
        [torch.nn.Parameter(torch.ones(3, device="meta"))], [], OptimConfig()
    )
    assert not elsewhere.defaults["fused"]


def test_shards_are_the_joint_batch() -> None:
    joint = Batch(
        torch.arange(10.0).view(10, 1, 1, 1), torch.arange(6), torch.arange(6) + 20, 4,
        torch.arange(8).view(4, 2), torch.rand(4, 2),
    )  # fmt: skip
    parts = [shard(joint, rank, 2) for rank in range(2)]
    assert sorted(x for part in parts for x in part.inputs.flatten().tolist()) == list(range(10))
    for part in parts:
        assert part.indices.tolist() == (part.targets + 20).tolist()
        assert part.inputs[: part.n_real].flatten().tolist() == part.targets.tolist()
        assert part.n_generated == 2
        assert part.mixed_targets is not None
        assert len(part.mixed_targets) == 2


class Searching(Mixup):
    """A generator that searches between epochs, as blind-region search does."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: list[float] = []

    def on_epoch(self, context: EpochContext) -> None:
        teacher = context.teacher
        assert teacher is not None
        gap = 0.0
        for batch in context.batches():
            made = self(batch, context.rng).inputs
            ours, theirs = context.students[0](made, LOGITS), teacher(made, LOGITS)
            gap += float((ours.logits - theirs.logits).abs().mean())
        self.distances.append(gap)


def test_generator_may_search_between_epochs() -> None:
    student, teacher = network(0), network(1)
    generator = Searching()
    loader = DeviceLoader(images(), torch.arange(N), 8, AugmentSettings(), 0, torch.device("cpu"))
    method = KDPlus(KDPlusSettings(), shapes(student))
    watch = Watch(launch(Runtime(device="cpu")), Counts(), lambda r: None, lambda t, o: None)
    fit(
        Training(
            DistillTask([student], method),
            Teacher(teacher, torch.device("cpu")),
            BatchMaker(loader, generator, method, 8, seed=0),
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
