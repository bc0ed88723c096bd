"""One update: what is asked once for all, who minimises what, and what goes on between phases."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from learners import CPU, FABRIC, OPTIM, ROWS, N, large, made, rows, small, train
from tiny import shapes_of, task_of
from torch import Tensor, nn

from fskd.config import Runtime
from fskd.errors import TrainingError
from fskd.methods.base import Method, Step, methods
from fskd.methods.words import Player, Term, Terms, student, teacher
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.devices import launch
from fskd.train.step import Learner, ask
from fskd.types import Outputs, Progress, Shapes


def learner(names: str, seed: int, **settings: Any) -> Learner:
    """A learner in its main phase."""
    net = small(seed)
    method = made(names, shapes_of(net, large(), N), **settings)
    task = task_of(method, [net])
    (stretch,) = method.stretches()
    task.enter(stretch)
    return Learner(task, stretch, OPTIM, FABRIC)


def state(one: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.task.state_dict().items()}


ARMS = ("kd", "at", "rkd")


def test_learners_on_one_teacher_pass_equal_their_separate_runs() -> None:
    """Bit for bit, terms and weights, with a third of the teacher's queries."""
    shared, together = Teacher(large(), CPU), [learner(name, i) for i, name in enumerate(ARMS)]
    terms, apart = train(together, shared), 0
    assert shared.queries == 5 * ROWS
    for number, name in enumerate(ARMS):
        own, alone = Teacher(large(), CPU), learner(name, number)
        start = state(alone)
        (expected,) = train([alone], own)
        apart += own.queries
        found = state(together[number])
        for key, value in state(alone).items():
            assert torch.equal(found[key], value), (name, key)
        assert not all(torch.equal(found[key], value) for key, value in start.items())
        assert terms[number].keys() == expected.keys()
        for term, one in expected.items():
            assert torch.equal(terms[number][term].value, one.value), (name, term)
    assert apart == 3 * shared.queries


def test_each_learner_sees_only_what_it_asked_for() -> None:
    stretches = [learner(name, 0).stretch for name in (*ARMS, "ce")]
    known = ask(Teacher(large(), CPU), rows(0), stretches, FABRIC)
    seen = []
    for given in known:
        taps = [one._asdict().items() for one in given if isinstance(one, Outputs)]
        full = {name for one in taps for name, tap in one if isinstance(tap, Tensor) or tap}
        seen.append(full)
    assert seen == [{"logits"}, {"stages"}, {"embedding"}, set()]


class Batchwise(Method):
    """The teacher by batch statistics."""

    passes = student("pre"), teacher("pre", mode="batch")

    def terms(self, step: Step) -> Terms:
        return {"pre": Term((step.student.pre[0].mean() - step.teacher.pre[0].mean()).square())}


def test_another_mode_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    methods.names()
    monkeypatch.setitem(methods._parts, "batchwise", Batchwise)
    source, arms = Teacher(large(), CPU), [learner("kd", 0), learner("batchwise", 1)]
    before = {name: value.clone() for name, value in source.net.state_dict().items()}
    kd, own = ask(source, rows(0), [one.stretch for one in arms], FABRIC)
    assert source.queries == 2 * ROWS
    (alone,) = ask(source, rows(0), [arms[0].stretch], FABRIC)
    assert torch.equal(kd[0].logits, alone[0].logits)
    eval_pre = source.ask(rows(0).inputs, frozenset({"pre"})).pre[0]
    assert not torch.allclose(own[0].pre[0], eval_pre)
    train(arms, source, 2)
    for name, value in source.net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nobody_to_ask_is_an_error() -> None:
    assert ask(None, rows(0), [learner("ce", 0).stretch], FABRIC) == [()]
    with pytest.raises(TrainingError, match="there is none"):
        ask(None, rows(0), [learner("kd", 0).stretch], FABRIC)


class Adversarial(Method):
    """A judge with Adam of its own tells embeddings apart; the student fools it."""

    passes = student("logits", "embedding"), teacher("embedding")

    def build(self, shapes: Shapes) -> None:
        ours, theirs = shapes.student.embedding[0], shapes.known.embedding[0]
        self.adapter, self.judge = nn.Linear(theirs, ours), nn.Linear(ours, 1)

    @property
    def players(self) -> Mapping[str, Player]:
        return {"judge": Player(("method.judge",), {"name": "adam", "lr": 0.01}, odd)}

    def terms(self, step: Step) -> Terms:
        ours, theirs = step.student.embedding, self.adapter(step.teacher.embedding)
        tell = nn.functional.softplus
        return {
            "fool": Term(tell(-self.judge(ours)).mean(), 0.5),
            "fit": Term((ours - theirs).square().mean()),
            "tell": Term(
                tell(-self.judge(theirs)).mean() + tell(self.judge(ours)).mean(), 2.0, "judge"
            ),
        }


def odd(step: int) -> bool:
    return step % 2 == 1


@pytest.fixture
def adversarial(monkeypatch: pytest.MonkeyPatch) -> Learner:
    methods.names()
    monkeypatch.setitem(methods._parts, "adversarial", Adversarial)
    net = small(0)
    method = made("adversarial", shapes_of(net, large(), N))
    task, (stretch,) = task_of(method, [net]), method.stretches()
    task.enter(stretch)
    return Learner(task, stretch, OPTIM, FABRIC)


def parts(one: Learner, before: dict[str, Tensor]) -> set[str]:
    """Which parts have moved."""
    moved = {
        key for key, value in one.task.named_parameters() if not torch.equal(value, before[key])
    }
    names = ("nets.student", "adapter", "judge")
    return {name for name in names for key in moved if name in key}


def test_players_move_in_their_turns(adversarial: Learner) -> None:
    """Each with its own optimiser; Adam's first steps have the size of its rate."""
    source = Teacher(large(), CPU)
    assert [move.name for move in adversarial.moves] == ["main", "judge"]
    assert [type(one).__name__ for one in adversarial.optimizers] == ["SGD", "Adam"]
    for step, expected in enumerate(
        [{"nets.student", "adapter"}, {"nets.student", "adapter", "judge"}]
    ):
        before = state(adversarial)
        (known,) = ask(source, rows(step), [adversarial.stretch], FABRIC)
        adversarial.update(rows(step), known, Progress("main", 0.0, step), 1.0)
        assert parts(adversarial, before) == expected
        if "judge" in expected:
            judge = next(name for name in before if name.endswith("judge.weight"))
            move = (adversarial.task.state_dict()[judge] - before[judge]).abs()
            torch.testing.assert_close(move, torch.full_like(move, 0.01), rtol=1e-3, atol=0)


def test_no_gradient_leaks_to_the_other_player(adversarial: Learner) -> None:
    """Each update is that of the player's own terms, as if the other's did not exist."""
    (known,) = ask(Teacher(large(), CPU), rows(1), [adversarial.stretch], FABRIC)
    seen: dict[str, Tensor] = {}
    for move in adversarial.moves:
        for number, parameter in enumerate(move.parameters):

            def keep(gradient: Tensor, key: str = f"{move.name} {number}") -> Tensor:
                assert key not in seen, "a second gradient"
                seen[key] = gradient.clone()
                return gradient

            parameter.register_hook(keep)
    twin = copy.deepcopy(adversarial.task)
    adversarial.update(rows(1), known, Progress("main", 0.0, 1), 1.0)
    terms = twin(rows(1), known, Progress("main", 0.0, 1), adversarial.stretch)
    unit = terms["ce"].weight
    for move in adversarial.moves:
        loss = sum(t.weight * t.value for t in terms.values() if t.by == move.name)
        loss = loss / unit if move.name == "main" else loss
        names = {id(p): name for name, p in adversarial.task.named_parameters()}
        own = [twin.get_parameter(names[id(p)]) for p in move.parameters]
        expected = torch.autograd.grad(loss, own, retain_graph=True)
        for number, gradient in enumerate(expected):
            torch.testing.assert_close(seen[f"{move.name} {number}"], gradient)
    assert all(p.grad is None or not p.grad.any() for p in adversarial.task.parameters())


def test_a_player_without_a_turn_gets_nothing(adversarial: Learner) -> None:
    """Nothing is left over from a step in which it did not move."""
    (known,) = ask(Teacher(large(), CPU), rows(0), [adversarial.stretch], FABRIC)
    adversarial.update(rows(0), known, Progress("main", 0.0, 0), 1.0)
    (judge,) = (move for move in adversarial.moves if move.name == "judge")
    assert all(p.grad is None for p in judge.parameters)
    assert not judge.optimizer.state


def test_gradients_are_clipped_for_each_player(adversarial: Learner) -> None:
    adversarial.optim = OptimConfig(lr=0.05, grad_clip=1e-6)
    before = state(adversarial)
    (known,) = ask(Teacher(large(), CPU), rows(0), [adversarial.stretch], FABRIC)
    adversarial.update(rows(0), known, Progress("main", 0.0, 0), 1.0)
    weight = "nets.student.net.fc.weight"
    moved = (adversarial.task.state_dict()[weight] - before[weight]).abs().max()
    assert moved < 1e-4


def test_precision_of_a_step() -> None:
    """With bf16 the weights stay in float32 and the terms come out in it."""
    fabric = launch(Runtime(device="cpu", precision="bf16-mixed"))
    net = small(0)
    method = made("kdplus+at", shapes_of(net, large(), N))
    task, (stretch,) = task_of(method, [net]), method.stretches()
    task.enter(stretch)
    one = Learner(task, stretch, OPTIM, fabric)
    (known,) = ask(Teacher(large(), CPU), rows(0), [stretch], fabric)
    terms = one.update(rows(0), known, Progress(), 1.0)
    assert {term.value.dtype for term in terms.values()} == {torch.float32}
    assert {p.dtype for p in task.parameters()} == {torch.float32}
