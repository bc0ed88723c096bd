"""Knowledge Flow: the blend number by number, and a teacher that is left."""

import math

import pytest
import torch
from arena import Arena
from recorded import maps
from steps import alone, batch, joint, net, shapes, speak, weights

from fskd.methods.knowledge_flow import KnowledgeFlow, blend
from fskd.types import Outputs, Progress

STAGES = ((3, 2, 2), (5, 1, 3))


@pytest.mark.parametrize("rows", [1, 3])
def test_slow_twin(rows: int) -> None:
    """All three terms, number by number."""
    method = joint("knowledge_flow", shapes(net(), net(stages=STAGES))).double()
    own = alone(method)
    assert isinstance(own, KnowledgeFlow)
    own.scores.data = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    stages = tuple(maps(rows, *one, seed=3) for one in STAGES)
    z, old = maps(rows, 4), maps(rows, 4, seed=1)
    nets = {"student": Outputs(z), "teacher": Outputs(stages=stages), "before": Outputs(old)}
    found = speak(method, nets, batch(rows), progress=Progress("main", 0.25))
    assert weights(found) == {"ce": 0, "independence": 0.25, "steadiness": 1, "flow": 1}
    e = [math.exp(a) for a in own.scores.tolist()]
    w, flow, kl = [x / sum(e) for x in e], 0.0, 0.0
    for b in range(rows):
        mixed = [w[0] * v for v in z[b].tolist()]
        for q, (one, x) in enumerate(zip(own.maps, stages, strict=True), 1):
            h = [sum(c) / len(c) for c in x[b].flatten(1).tolist()]
            for k, (row, bias) in enumerate(
                zip(one.weight.tolist(), one.bias.tolist(), strict=True)
            ):
                mixed[k] += w[q] * (bias + sum(m * v for m, v in zip(row, h, strict=True)))
        flow += (math.log(sum(math.exp(v) for v in mixed)) - mixed[b % 4]) / rows
        s, t = z[b].tolist(), old[b].tolist()
        ls, lt = (math.log(sum(math.exp(v) for v in one)) for one in (s, t))
        kl += sum(math.exp(v - lt) * (v - lt - u + ls) for u, v in zip(s, t, strict=True)) / rows
    assert found["flow"].value.item() == pytest.approx(flow, rel=1e-10)
    assert found["steadiness"].value.item() == pytest.approx(kl, rel=1e-10)
    assert found["independence"].value.item() == pytest.approx(-math.log(w[0]), rel=1e-10)


def test_limits() -> None:
    """A student whose own weight is all there is gives its own logits."""
    z = maps(2, 3)
    scores = torch.tensor([80.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(blend([z, maps(2, 3, seed=1)], scores), z)


def test_what_it_is_for() -> None:
    """Leaving the teacher makes the student's own share grow."""
    run = Arena("knowledge_flow", "wide").begin()
    learner, own = run.learner(), run.method
    assert isinstance(own, KnowledgeFlow)
    for step in range(10):
        run.update(learner, step)
    assert own.scores.softmax(0)[0] > 1 / 3
