"""MEAL V2: recorded values, both terms number by number, and what is asked of the teachers."""

import math

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, taps, weighted
from steps import joint
from torch import Tensor, nn
from toys import loader, network
from toys import shapes as toy_shapes

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.methods.base import Step
from fskd.methods.meal_v2 import MEALV2, discriminator, mean_similarity, origin_loss
from fskd.methods.needs import check_needs
from fskd.resolve import resolve
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.teachers.ensemble import Ensemble
from fskd.train.batches import BatchMaker
from fskd.train.devices import launch
from fskd.train.step import Learner, ask
from fskd.train.task import DistillTask
from fskd.types import Outputs, Progress


def ours(name: str) -> str:
    """Our name of a recorded weight: linear layers are 0, 2 and 4."""
    _, layer, tensor = name.split(".")
    return f"discriminator.{2 * int(layer[-1]) - 2}.{tensor}"


def built(classes: int, **settings: float) -> MEALV2:
    """The method for so many classes, in float64."""
    method = MEALV2(MEALV2.Settings(**settings))
    net = taps([torch.empty(1, 4, 2, 2)])
    method.shapes = shapes(net, net, classes)
    torch.manual_seed(0)  # with many others the narrow layers pass on nothing
    method.build(method.shapes)
    return method.double()


def seen(student: Tensor, teachers: list[Tensor]) -> Step:
    """What a student and several teachers gave."""
    known = tuple(Outputs(one) for one in teachers)
    batch = real_batch(torch.zeros(len(student), dtype=torch.int64))
    return Step({"student": Outputs(student), "teachers": known}, batch, Progress())


def test_recorded() -> None:
    """Both terms and all gradients, the discriminator's layers too."""
    case = Case("meal_v2_c1")
    method = built(32, reduction=case.hp("K"))
    recorded = case.weights(ours).items()
    method.load_state_dict({n: w.flatten(1) if w.dim() == 4 else w for n, w in recorded})
    terms = method.terms(seen(case["logits_s"], case.stages("logits_t")))
    case.close(terms["similarity"].value, "sim")
    case.close(terms["discriminator"].value, "disc")
    # The reference's layers are 1x1 convolutions.
    for name, gradient in case.groups["gradp"].items():
        case.groups["gradp"][name] = gradient.flatten(1) if gradient.dim() == 4 else gradient
    case.loss(weighted(terms), dict(method.named_parameters()), ours)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


def test_slow_twin() -> None:
    """Similarity and discriminator, number by number."""
    student, teachers = maps(3, 9), [maps(3, 9, seed=i) for i in (1, 2, 3)]
    total = 0.0
    for r in range(3):
        known = [softmax(one[r].tolist()) for one in teachers]
        log_q = [math.log(x) for x in softmax(student[r].tolist())]
        total -= sum(sum(p[c] for p in known) / 3 * log_q[c] for c in range(9)) / 3
    assert mean_similarity(student, teachers).item() == pytest.approx(total, rel=1e-12)
    judge = discriminator(9, 2).double()
    layers = [part for part in judge if isinstance(part, nn.Linear)]
    assert [layer.out_features for layer in layers] == [4, 2, 2]
    layers[-1].bias.data += 1  # so that the last ReLU lets something through
    loss = 0.0
    for rows, wanted in ((student, (1, 0)), (torch.stack(teachers).mean(0), (0, 1))):
        for row in rows.tolist():
            for layer in layers:
                w, b = layer.weight.tolist(), layer.bias.tolist()
                row = [
                    max(0.0, sum(x * y for x, y in zip(line, row, strict=True)) + shift)
                    for line, shift in zip(w, b, strict=True)
                ]
            for score, target in zip(row, wanted, strict=True):
                p = 1 / (1 + math.exp(-score))
                loss -= math.log(p if target else 1 - p) / 12
    method = built(9, reduction=2)
    method.discriminator.load_state_dict(judge.state_dict())
    terms = method.terms(seen(student, teachers))
    assert terms["discriminator"].value.item() == pytest.approx(loss, rel=1e-12)
    assert terms["similarity"].value.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("classes", "widths"), [(1000, [125, 15, 2]), (10, [1, 1, 2])])
def test_widths(classes: int, widths: list[int]) -> None:
    """K/8 and K/64, of few classes 1."""
    layers = [part for part in discriminator(classes) if isinstance(part, nn.Linear)]
    assert [layer.out_features for layer in layers] == widths


def test_limits() -> None:
    """One row, extreme logits, rounded ones, and no gradient for teachers."""
    teacher = maps(1, 4, seed=1).requires_grad_()
    student = maps(1, 4).requires_grad_()
    method = built(4, reduction=1)
    weighted(method.terms(seen(student, [teacher, teacher]))).backward()
    assert teacher.grad is None
    assert student.grad is not None
    large = torch.tensor([[1e4, -1e4, 0.0]])
    assert mean_similarity(large, [large, -large]).isfinite()
    assert mean_similarity(large, [large, large]) == 0
    scores = torch.tensor([[1e4, 0.0]])
    assert origin_loss(scores, scores.flip(1)).item() == pytest.approx(math.log(2) / 2)
    assert origin_loss(-scores, scores).isfinite()
    rounded = mean_similarity(maps(3, 5).bfloat16(), [maps(3, 5, seed=1).bfloat16()])
    assert rounded.dtype == torch.float32
    exact = mean_similarity(maps(3, 5), [maps(3, 5, seed=1)])
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-2, atol=0)


def test_no_adversary() -> None:
    """The student's gradient is that of the loss the discriminator minimises, as published."""
    method, student = built(6, reduction=1), maps(3, 6).requires_grad_()
    terms = method.terms(seen(student, [maps(3, 6, seed=1), maps(3, 6, seed=2)]))
    assert {term.by for term in terms.values()} == {"main"}
    (pull,) = torch.autograd.grad(terms["discriminator"].value, student, retain_graph=True)
    assert pull.abs().sum() > 0
    assert terms["discriminator"].value.requires_grad


def test_defaults() -> None:
    """No labels, no weight decay; the scale of the total is the similarity's."""
    config = resolve({"method": "meal_v2"})
    assert config.optim.weight_decay == 0
    run = joint("meal_v2", toy_shapes(network(0)))
    (stretch,) = run.stretches()
    assert stretch.objective is not None
    assert not any(stretch.objective.weights.values())
    assert [one.net for one in stretch.runs] == ["student", "teachers"]
    assert run.unit >= {"similarity"}
    assert "discriminator" not in run.unit


def test_two_teachers_are_needed() -> None:
    """The error says how to name them."""
    with pytest.raises(SettingError, match="--teacher a\\+b"):
        check_needs("meal_v2", MEALV2.needs, toy_shapes(network(0)))


def test_training() -> None:
    """One update with two teachers moves the student and learns no labels."""
    net, known = network(0), Ensemble([network(1), network(2)])
    run = joint("meal_v2", toy_shapes(net), reduction=1)
    task = DistillTask({"student": net}, run)
    (stretch,) = run.stretches()
    task.enter(stretch)
    learner = Learner(task, stretch, OptimConfig(), launch(Runtime(device="cpu")))
    batch = BatchMaker(loader(), None, run, 0, seed=0).batch(0, stretch)
    (answers,) = ask(Teacher(known, torch.device("cpu")), batch, [stretch], learner.fabric)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    terms = learner.update(batch, answers, Progress(), 1.0)
    assert {name: term.weight for name, term in terms.items()} == {
        "ce": 0,
        "similarity": 1,
        "discriminator": 1,
    }
    assert all(not torch.equal(p, before[n]) for n, p in net.named_parameters())
