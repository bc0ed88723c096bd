"""KDGAN: every player's loss number by number, drawn labels, and who moves when."""

import copy
import math

import pytest
import torch
from recorded import maps, real_batch, step
from steps import joint
from torch import Tensor
from toys import loader, network
from toys import shapes as toy_shapes

from fskd.config import Runtime
from fskd.methods.compose import Joint
from fskd.methods.kdgan import KDGAN, deceit_loss, drawn_labels, judge_loss
from fskd.methods.words import Role
from fskd.models.taps import FeatureNet
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.train.batches import BatchMaker
from fskd.train.devices import launch
from fskd.train.step import Learner, ask, total_loss
from fskd.train.task import DistillTask
from fskd.types import Batch, Outputs, Progress


def one_hot(*classes: int, width: int = 5) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), width).double()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_slow_twin(share: float) -> None:
    """Each logarithm of d and of 1-d, number by number."""
    scores, targets = maps(3, 5), torch.tensor([4, 0, 1])
    student, tutor = (2, 0, 3), (4, 4, 4)
    total = 0.0
    for row, y, c, t in zip(scores.tolist(), targets.tolist(), student, tutor, strict=True):
        total -= log_sigmoid(row[y]) / 3
        total -= (share * log_sigmoid(-row[c]) + (1 - share) * log_sigmoid(-row[t])) / 3
    found = judge_loss(scores, targets, one_hot(*student), one_hot(*tutor), share)
    assert found.item() == pytest.approx(total, rel=1e-12)
    pairs = zip(scores.tolist(), student, strict=True)
    deceit = -sum(log_sigmoid(row[c]) for row, c in pairs) / 3
    assert deceit_loss(scores, one_hot(*student)).item() == pytest.approx(deceit, rel=1e-12)


def test_drawn_labels_follow_the_probabilities() -> None:
    """One-hot rows; each class as often as softmax says."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = drawn_labels(logits.expand(20_000, 3))
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert (drawn.sum(1) == 1).all()
    torch.testing.assert_close(drawn.mean(0), logits.softmax(0), rtol=0, atol=0.015)


def test_the_gradient_is_that_of_soft_labels() -> None:
    """Through softmax((z + noise)/tau), whatever class was drawn."""
    z, scores = maps(2, 4).requires_grad_(), maps(2, 4, seed=1)
    torch.manual_seed(3)
    drawn = drawn_labels(z, 0.5)
    deceit_loss(scores, drawn).backward()
    torch.manual_seed(3)
    noise = -torch.empty_like(z).exponential_().log()
    soft = ((z.detach() + noise) / 0.5).softmax(1)
    picked = (scores * drawn.detach()).sum(1)
    up = -(1 - picked.sigmoid())[:, None] * scores / 2
    expected = soft * (up - (up * soft).sum(1, keepdim=True)) / 0.5
    torch.testing.assert_close(z.grad, expected)


def test_limits() -> None:
    """One row, extreme scores and logits, and rounded ones."""
    torch.manual_seed(0)
    large = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    drawn = drawn_labels(large)
    assert drawn.tolist() == [[1.0, 0.0, 0.0]]
    loss = deceit_loss(-large, drawn)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert large.grad is not None
    assert large.grad.isfinite().all()
    assert judge_loss(large, torch.tensor([1]), drawn, drawn).item() == pytest.approx(2e4)
    rounded = drawn_labels(large.detach().bfloat16())
    assert rounded.dtype == torch.float32
    scores = maps(4, 5)
    labels, fake = torch.tensor([0, 1, 2, 3]), one_hot(1, 1, 1, 1).float()
    low = judge_loss(scores.bfloat16(), labels, fake, fake)
    assert low.dtype == torch.float32
    exact = judge_loss(scores, labels, fake.double(), fake.double())
    torch.testing.assert_close(low.double(), exact, rtol=1e-2, atol=0)


def test_gradcheck() -> None:
    """The judge's loss in its scores, the other in the labels."""
    scores, fake = maps(3, 5).requires_grad_(), one_hot(0, 2, 4)
    targets = torch.tensor([1, 1, 1])
    assert torch.autograd.gradcheck(lambda s: judge_loss(s, targets, fake, fake, 0.3), (scores,))
    soft = maps(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: deceit_loss(maps(3, 5), y), (soft,))


def tutored(**settings: float) -> tuple[Joint, DistillTask, FeatureNet]:
    """A run with a tutor that begins as the teacher."""
    net, known = network(0), network(1)
    run = joint("kdgan", toy_shapes(net), **settings)
    tutor = copy.deepcopy(known).requires_grad_(True)
    return run, DistillTask({"student": net, "tutor": tutor}, run), known


class Play:
    """A phase of training on one batch."""

    def __init__(self, **settings: float) -> None:
        self.run, self.task, known = tutored(**settings)
        (self.stretch,) = self.run.stretches()
        self.task.enter(self.stretch)
        optim = OptimConfig(lr=0.1, schedule="constant")
        self.learner = Learner(self.task, self.stretch, optim, launch(Runtime(device="cpu")))
        self.batch: Batch = BatchMaker(loader(), None, self.run, 0, 0).batch(0, self.stretch)
        teacher = Teacher(known, torch.device("cpu"))
        (self.answers,) = ask(teacher, self.batch, [self.stretch], self.learner.fabric)

    def update(self, number: int) -> set[str]:
        """One update; the players whose parameters moved."""
        before = {m.name: [p.detach().clone() for p in m.parameters] for m in self.learner.moves}
        torch.manual_seed(number)
        self.learner.update(self.batch, self.answers, Progress(step=number), 1.0)
        return {
            move.name
            for move in self.learner.moves
            if not all(map(torch.equal, before[move.name], move.parameters))
        }


def test_players() -> None:
    """Three optimisers divide all parameters; the rates are the settings'."""
    play = Play(lr=0.01, tutor_lr=0.002)
    moves = {move.name: move for move in play.learner.moves}
    assert moves.keys() == {"main", "tutor", "discriminator"}
    nets = play.task.nets
    judge = play.run.methods["kdgan"].get_submodule("discriminator")
    for name, net in (
        ("main", nets["student"]),
        ("tutor", nets["tutor"]),
        ("discriminator", judge),
    ):
        assert {id(p) for p in moves[name].parameters} == {id(p) for p in net.parameters()}
    rates = {name: move.optimizer.param_groups[0]["peak"] for name, move in moves.items()}
    assert rates == {"main": 0.1, "tutor": 0.002, "discriminator": 0.01}


@pytest.mark.parametrize("k", [1, 3])
def test_turns(k: int) -> None:
    """The discriminator moves in every step, the others in every k-th."""
    play, everybody = Play(k=k), {"main", "tutor", "discriminator"}
    for number in range(2 * k):
        expected = everybody if number % k == k - 1 else {"discriminator"}
        assert play.update(number) == expected


def test_no_gradient_leaks_to_another_player() -> None:
    """What a player minimises reaches what it trains, and nothing else."""
    play = Play()
    torch.manual_seed(0)
    terms = play.task(play.batch, play.answers, Progress(), play.stretch)
    players = {move.name: move.parameters for move in play.learner.moves}
    found: dict[str, list[Tensor]] = {}
    for name, own in players.items():
        mine = {n: term for n, term in terms.items() if term.by == name}
        loss = total_loss(mine, play.run.unit)
        for other, theirs in players.items():
            grads = torch.autograd.grad(loss, theirs, retain_graph=True, allow_unused=True)
            if other == name:
                assert any(g is not None and g.abs().sum() > 0 for g in grads)
                found[name] = [g for g in grads if g is not None]
            else:
                assert all(g is None for g in grads), (name, other)
        assert len(found[name]) == len(own)


def test_terms() -> None:
    """Weights, divisor and who minimises what."""
    run, _, _ = tutored(share=0.25, student_kd_weight=2.0, tutor_kd_weight=3.0)
    method = run.methods["kdgan"]
    logits = maps(4, 3, dtype=torch.float32), maps(4, 3, seed=1, dtype=torch.float32)
    width = method.get_parameter("discriminator.0.weight").shape[1]
    nets = {
        "student": Outputs(logits[0]),
        "tutor": Outputs(logits[1]),
        "teacher": Outputs(embedding=torch.randn(4, width)),
    }
    terms = method.terms(step(real_batch(torch.tensor([0, 1, 2, 0])), 0.0, **nets))
    assert {name: (term.weight, term.by) for name, term in terms.items()} == {
        "judged": (1.0, "discriminator"),
        "deceit": (0.25, "main"),
        "student_kd": (2.0, "main"),
        "tutor_deceit": (0.75, "tutor"),
        "tutor_kd": (3.0, "tutor"),
    }
    log_c, log_t = ((z / 3).log_softmax(1) for z in logits)
    forth = (log_t.exp() * (log_t - log_c)).sum(1).mean() * 9
    torch.testing.assert_close(terms["student_kd"].value, forth)
    back = (log_c.exp() * (log_c - log_t)).sum(1).mean() * 9
    torch.testing.assert_close(terms["tutor_kd"].value, back)
    assert {"ce", "deceit", "student_kd"} <= run.unit
    assert not {"tutor_kd", "tutor_deceit", "judged"} & run.unit


def test_passes() -> None:
    """A copy of the teacher is trained, the teacher itself gives the judge's features."""
    run, _, _ = tutored()
    assert run.roles == {"tutor": Role(of="teacher", weights="copy")}
    (stretch,) = run.stretches()
    assert {one.net: one.taps for one in stretch.runs} == {
        "student": {"logits"},
        "teacher": {"embedding"},
        "tutor": {"logits"},
    }
    assert KDGAN.needs.one_process
    assert not stretch.generated


def test_judge_learns() -> None:
    """With everybody else still, true labels are told from drawn ones better and better."""
    play = Play(k=1000, lr=0.01)
    losses = []
    for number in range(60):
        torch.manual_seed(number)
        terms = play.learner.update(play.batch, play.answers, Progress(step=number), 1.0)
        losses.append(terms["judged"].value.item())
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
