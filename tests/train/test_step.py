"""One update: questions shared among learners, and losses of several players."""

import torch
from toys import loader, network, shapes

from fskd.config import OptimConfig, Runtime
from fskd.methods.base import methods
from fskd.methods.compose import join
from fskd.teachers.base import Teacher
from fskd.train.alone import AnyFabric
from fskd.train.devices import launch
from fskd.train.step import Learner, ask
from fskd.train.task import DistillTask
from fskd.types import Progress


def learner(name: str, fabric: AnyFabric) -> Learner:
    net = network(0)
    run = join([(name, methods.get(name).Settings())]).build(shapes(net))
    task = DistillTask({"student": net}, run)
    (stretch,) = run.stretches()
    task.enter(stretch)
    return Learner(task, stretch, OptimConfig(lr=0.05), fabric)


def test_three_learners_share_one_teacher_pass() -> None:
    """Bit for bit what each learns alone, for a third of the queries."""
    names = ("kd", "at", "rkd")
    device, fabric = torch.device("cpu"), launch(Runtime(device="cpu"))
    together, alone = ([learner(name, fabric) for name in names] for _ in range(2))
    known, own = Teacher(network(1), device), Teacher(network(1), device)
    rows = loader()
    for step in range(4):
        progress = Progress(step=step)
        answers = ask(known, rows.batch(step), [one.stretch for one in together], fabric)
        for one, answer in zip(together, answers, strict=True):
            one.update(rows.batch(step), answer, progress, 1.0)
        for one in alone:
            (answer,) = ask(own, rows.batch(step), [one.stretch], fabric)
            one.update(rows.batch(step), answer, progress, 1.0)
    assert own.queries == 3 * known.queries == 3 * 4 * 8
    for one, other in zip(together, alone, strict=True):
        for ours, theirs in zip(one.task.parameters(), other.task.parameters(), strict=True):
            assert torch.equal(ours, theirs)
