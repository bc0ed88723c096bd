"""Toy methods of families that are yet to come: players, gradients, modes, averages, guesses."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from ran import BOTH, Ran, joint
from torch import Tensor, nn
from toys import K, network, shapes

from fskd.methods.base import Method, Step
from fskd.methods.words import Pass, Player, Role, Term, Terms, student, teacher
from fskd.models.taps import LOGITS
from fskd.types import Batch, Shapes, Tools


class Adversarial(Method):
    """A discriminator with Adam of its own, trained against the student in one forward pass."""

    passes = student("embedding"), teacher("embedding")

    def build(self, shapes: Shapes) -> None:
        torch.manual_seed(0)
        self.discriminator = nn.Linear(shapes.student.embedding[0], 1)
        self.before = self.discriminator.weight.detach().clone()

    @property
    def players(self) -> Mapping[str, Player]:
        settings = {"name": "adam", "lr": 0.01, "schedule": "constant"}
        return {"judge": Player(("method.discriminator",), settings)}

    def terms(self, step: Step) -> Terms:
        ours, theirs = step.student.embedding, step.teacher.embedding
        real, fake, tell = self.discriminator(theirs), self.discriminator(ours), nn.functional
        return {
            "fool": Term(tell.softplus(-fake).mean(), 0.1),
            "tell": Term(tell.softplus(-real).mean() + tell.softplus(fake).mean(), by="judge"),
        }


def test_adversarial_method_has_an_optimiser_of_its_own() -> None:
    found = Ran(Adversarial, network(0), network(1), steps=3)
    # Adam's first steps have the size of its rate, whatever the gradient.
    moved = (found.toy.discriminator.weight - found.toy.before).abs().max()
    assert 0.0 < moved < 3.1 * 0.01
    assert set(found.records[-1]) >= {"ce", "fool", "tell"}


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
    source, net = network(1), network(0)
    found = Ran(Jacobian, net, source)
    assert found.records[-1]["jacobian"] > 0
    assert found.records[-1]["ce"] > 0
    assert all(p.grad is None for p in source.parameters())
    assert net.net.get_buffer("stages.0.0.1.num_batches_tracked") == 4  # once a step


class BatchTeacher(Method):
    """OFD's teacher uses batch statistics."""

    passes = (teacher("pre", mode="batch"),)

    def terms(self, step: Step) -> Terms:
        # Batch norm without running statistics: every channel has mean 0 but for its bias.
        return {"pre": Term(step.teacher.pre[0].mean((0, 2, 3)).abs().max())}


def test_teacher_by_batch_statistics() -> None:
    source = network(1)
    source(torch.rand(8, 1, 8, 8) + 3)
    before = {k: v.clone() for k, v in source.state_dict().items()}
    found = Ran(BatchTeacher, network(0), source)
    assert found.records[-1]["pre"] == pytest.approx(0.0, abs=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


class Looks(Method):
    """Asks networks for statistics when a phase begins."""

    def build(self, shapes: Shapes) -> None:
        self.register_buffer("mean", torch.zeros(32))
        self.n = 0

    def begin(self, tools: Tools) -> None:
        for batch in tools.batches():
            ours = tools.ask("student", batch.inputs, BOTH)
            theirs = tools.ask("teacher", batch.inputs, frozenset({"embedding"}))
            assert ours.logits.shape == (8, K)
            assert not ours.embedding.requires_grad
            assert not theirs.embedding.requires_grad
            self.mean += theirs.embedding.sum(0)
            self.n += batch.n_real


def test_begin_may_ask() -> None:
    """In eval mode, whatever is trained; the teacher's answers are counted."""
    net, source = network(0), network(1)
    modes: list[bool] = []
    method = joint(Looks, shapes(net))
    net.register_forward_hook(lambda module, *_: modes.append(module.training))
    found = Ran(method, net, source, steps=2)
    assert modes == [False, False, True, True]
    assert net.training
    assert found.toy.n == 16  # both steps that begin in the first pass
    assert found.toy.mean.abs().sum() > 0
    assert found.counts.teacher_queries == 16


class Averaged(Method):
    """Mean teacher: an average of the student over the updates, buffers included."""

    passes = student("logits"), Pass("average", "average", LOGITS)

    @property
    def roles(self) -> Mapping[str, Role]:
        return {"average": Role(weights="ema", decay=0.2)}

    def terms(self, step: Step) -> Terms:
        assert not step["average"].logits.requires_grad
        return {"pull": Term((step.student.logits - step["average"].logits).square().mean())}


def test_average_follows_the_student() -> None:
    net, average = network(0), network(0).eval().requires_grad_(False)
    states, own = [{k: v.clone() for k, v in net.state_dict().items()}], net.state_dict()
    net.register_forward_pre_hook(lambda *_: states.append({k: v.clone() for k, v in own.items()}))
    Ran(Averaged, net, steps=3, roles={"average": average})
    seen = [*states[-2:], own]  # behind every update
    for name, mean in average.state_dict().items():
        expected = states[0][name]
        for step, state in enumerate(seen):
            now, kept = state[name], min(0.2, (1 + step) / (10 + step))
            expected = kept * expected + (1 - kept) * now if now.is_floating_point() else now
        torch.testing.assert_close(mean, expected)
    assert not average.training


class Relabels(Method):
    """Guesses by batch statistics, which leave the running ones as they are."""

    passes = (student("logits"),)

    def relabel(self, batch: Batch, ask: Any, rng: torch.Generator) -> Batch:
        logits = ask(batch.inputs)
        assert not logits.requires_grad
        order = torch.randperm(batch.n_real, generator=rng)
        return batch._replace(inputs=batch.inputs[order], soft=logits.softmax(1)[order])

    def terms(self, step: Step) -> Terms:
        assert step.batch.soft is not None
        logs = step.student.logits.log_softmax(1)
        return {"guess": Term(-(step.batch.soft * logs).sum(1).mean())}


def test_relabelled_rows_are_those_that_the_networks_see() -> None:
    net = network(0)
    seen: list[Tensor] = []
    method = joint(Relabels, shapes(net))
    net.register_forward_hook(lambda _, inputs, out: seen.append(out.logits.detach()))
    found = Ran(method, net, steps=2)
    assert found.records[-1]["guess"] > 0
    # Batch statistics do not depend on the order: the same logits, moved.
    for guess, trained in (seen[:2], seen[2:]):
        torch.testing.assert_close(
            guess.sort(0).values, trained.sort(0).values, rtol=1e-4, atol=1e-5
        )
    assert net.net.get_buffer("stages.0.0.1.num_batches_tracked") == 2
