"""ONE: recorded values, the ensemble number by number, and branches on one trunk."""

import math

import pytest
import torch
from recorded import Case, maps, real_batch, shapes, step, taps, weighted
from steps import joint, weights
from torch import Tensor, nn
from toys import images, loader, network
from toys import shapes as toy_shapes

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.methods.needs import check_needs
from fskd.methods.one import ONE, ensemble, ensemble_divergence, make_gate, ramp_up
from fskd.methods.plan import Source
from fskd.methods.words import Role
from fskd.models.sections import section
from fskd.settings import OptimConfig
from fskd.train.batches import BatchMaker
from fskd.train.devices import launch
from fskd.train.step import Learner
from fskd.train.task import DistillTask
from fskd.types import Batch, Outputs, Progress

GATE = {"control_v1": "0", "bn_v1": "1"}


def ours(name: str) -> str:
    """Our name of a recorded weight: ``gate.<layer>`` or ``heads.<branch>``."""
    _, module, tensor = name.split(".")
    if module in GATE:
        return f"gate.{GATE[module]}.{tensor}"
    return f"heads.{int(module[-1]) - 1}.{tensor}"


def built(trunk: int = 8, dtype: torch.dtype = torch.float64, **settings: float) -> ONE:
    """The method on a trunk with so many channels."""
    method = ONE(ONE.Settings(**settings))
    net = taps([torch.empty(1, trunk, 2, 2), torch.empty(1, 16, 1, 1)])
    method.shapes = shapes(net, None)
    method.build(method.shapes)
    return method.to(dtype)


def given(trunk: Tensor, *logits: Tensor) -> dict[str, Outputs]:
    """What the student and its further branches gave."""
    student = Outputs(logits[0], stages=(trunk, trunk))
    return {
        "student": student,
        **{f"branch{i}": Outputs(z) for i, z in enumerate(logits) if i},
    }


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's soft targets, which do not sum to 1."""
    exact = ensemble_divergence
    monkeypatch.setattr(
        "fskd.methods.one.ensemble_divergence",
        lambda z, mean, temperature: exact(z, mean, temperature, 1e-7),
    )


@pytest.mark.usefixtures("published")
def test_recorded() -> None:
    """The whole loss with all gradients, through gate and branches, at the file's tolerance."""
    case = Case("one_c1")
    method = built(consistency_weight=case.hp("consistency_weight"), temperature=case.hp("T"))
    embeddings = case.stages("branch_emb")
    heads = nn.ModuleList(nn.Linear(16, 7) for _ in embeddings).double()
    whole = nn.ModuleDict({"gate": method.gate, "heads": heads})
    whole.load_state_dict(case.weights(ours))
    logits = [head(x) for head, x in zip(heads, embeddings, strict=True)]
    batch = real_batch(case["labels"])
    # A map whose mean is the recorded pooled feature.
    trunk = case["gate_emb"][:, :, None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    seen = step(batch, 0.5, **given(trunk, *logits))
    case.close(method.measured(seen)["ensemble"], "ensemble_logits")
    own = method.terms(seen)
    case.close(own["one_kd"].value * own["one_kd"].weight, "loss_kl")
    ce = method.settings.objective().terms(batch, logits, None)["ce"]
    case.close(ce + own["one_ce"].value, "loss_cross")
    case.loss(ce + weighted(own), dict(whole.named_parameters()), ours)


def test_eps_is_all_that_differs_from_the_reference() -> None:
    """The exact divergence is the published one but for 1e-7 on the targets."""
    logits = [maps(5, 7, seed=i) for i in range(3)]
    mixed = maps(5, 7, seed=9)
    exact, plus = ensemble_divergence(logits, mixed), ensemble_divergence(logits, mixed, eps=1e-7)
    assert 0 < abs(exact - plus).item() < 1e-4


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def test_slow_twin() -> None:
    """Gate, ensemble and divergence, number by number."""
    trunk, logits = maps(4, 3, 2, 5), [maps(4, 6, seed=i) for i in (1, 2)]
    gate = make_gate(3, 2).double()
    (w, b), (gain, bias) = ([p.tolist() for p in gate[i].parameters()] for i in (0, 1))
    pooled = [[sum(c.flatten().tolist()) / 10 for c in row] for row in trunk]
    raw = [[sum(w[i][c] * row[c] for c in range(3)) + b[i] for i in range(2)] for row in pooled]
    for i in range(2):
        column = [row[i] for row in raw]
        mean = sum(column) / 4
        var = sum((x - mean) ** 2 for x in column) / 4
        for row in raw:
            row[i] = max(0.0, gain[i] * (row[i] - mean) / math.sqrt(var + 1e-5) + bias[i])
    shares = [softmax(row) for row in raw]
    made = ensemble(logits, gate(trunk.mean((2, 3))))
    total = 0.0
    for r in range(4):
        mixed = [sum(shares[r][i] * logits[i][r, c].item() for i in range(2)) for c in range(6)]
        assert made[r].tolist() == pytest.approx(mixed, rel=1e-10)
        p = softmax(mixed, 3.0)
        for i in range(2):
            q = softmax(logits[i][r].tolist(), 3.0)
            total += 9 / 4 * sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
    assert ensemble_divergence(logits, made).item() == pytest.approx(total, rel=1e-10)


def test_limits() -> None:
    """0 for equal branches; extreme logits stay finite; one row; rounded logits in float32."""
    z = maps(1, 5)
    assert ensemble_divergence([z, z], z).item() == pytest.approx(0, abs=1e-13)
    large = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = ensemble_divergence([large, -large], large)
    loss.backward()
    assert loss.isfinite()
    assert large.grad is not None
    assert large.grad.isfinite().all()
    rounded = ensemble_divergence([maps(3, 5).bfloat16()], maps(3, 5, seed=1).bfloat16())
    assert rounded.dtype == torch.float32
    exact = ensemble_divergence([maps(3, 5)], maps(3, 5, seed=1))
    torch.testing.assert_close(rounded.double(), exact, rtol=2e-2, atol=0)
    shares = torch.tensor([[0.25, 0.75]])
    halves = [torch.full((1, 2), 4.0).bfloat16(), torch.zeros(1, 2).bfloat16()]
    assert ensemble(halves, shares).tolist() == [[1.0, 1.0]]


def test_what_learns_from_what() -> None:
    """Soft targets are constants, so the gate learns from the ensemble's labels only."""
    method, logits = built(n_branches=2), [maps(4, 10, seed=i).requires_grad_() for i in (1, 2)]
    batch = real_batch(torch.tensor([0, 1, 2, 3]))
    own = method.terms(step(batch, 0.0, **given(maps(4, 8, 2, 2), *logits)))
    gate = list(method.gate.parameters())
    free = torch.autograd.grad(own["one_kd"].value, gate, retain_graph=True, allow_unused=True)
    assert free == (None,) * len(gate)
    led = torch.autograd.grad(own["one_ce"].value, [*gate, *logits])
    assert all(g.abs().sum() > 0 for g in (led[0], *led[-2:]))


def test_ramp() -> None:
    """The weight of KD rises over the first 80 of 300 epochs; labels' weights stay."""
    assert ONE.Settings().ramp == 80 / 300
    assert ramp_up(0, 0.3) == pytest.approx(math.exp(-5))
    assert ramp_up(0.15, 0.3) == pytest.approx(math.exp(-5 / 4))
    assert ramp_up(0.3, 0.3) == ramp_up(0.9, 0.3) == 1
    method, batch = built(consistency_weight=2.0), real_batch(torch.tensor([0, 1]))
    seen = given(maps(2, 8, 2, 2), *(maps(2, 10, seed=i) for i in range(3)))
    found = weights(dict(method.terms(step(batch, 40 / 300, **seen))))
    assert found == pytest.approx({"one_kd": 2 * math.exp(-5 / 4), "one_ce": 1.0})


def test_without_labelled_rows_the_ensemble_has_no_labels() -> None:
    """Generated rows enter KD only."""
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([1]), torch.tensor([0]))
    batch = batch._replace(parts={"generated": slice(1, 3)})
    method, logits = built(), [maps(3, 10, seed=i) for i in range(3)]
    trunk = maps(3, 8, 2, 2)
    own = method.terms(step(batch, 0.0, **given(trunk, *logits)))
    mixed = method.measured(step(batch, 0.0, **given(trunk, *logits)))["ensemble"]
    assert own["one_ce"].value.item() == pytest.approx(-mixed[:1].log_softmax(1)[0, 1].item())
    none = batch._replace(targets=batch.targets[:0], parts={"generated": slice(0, 3)})
    assert method.terms(step(none, 0.0, **given(trunk, *logits))).keys() == {"one_kd"}


def test_runs() -> None:
    """Labels reach all branches, which are run on the student's map before its last stage."""
    run = joint("one", toy_shapes(network(0)))
    assert run.roles == {"branch1": Role(after=-2), "branch2": Role(after=-2)}
    assert run.n_students == 1
    assert run.unit >= {"one_ce", "one_kd", "ce"}
    (stretch,) = run.stretches()
    assert [one.net for one in stretch.runs] == ["student", "branch1", "branch2"]
    assert {one.source for one in stretch.runs[1:]} == {Source(0, "stages", -2)}
    assert stretch.labelled == (0, 1, 2)
    assert not stretch.asks
    assert len(joint("one", toy_shapes(network(0)), n_branches=4).roles) == 3


def test_one_row_leaves_own_terms_out() -> None:
    """The gate's batch norm cannot normalise a single row; labels are learned all the same."""
    run = joint("one", toy_shapes(network(0)))
    (stretch,) = run.stretches()
    student = Outputs(torch.zeros(1, 3), stages=(torch.zeros(1, 16, 4, 4),) * 2)
    gave = [student, Outputs(torch.zeros(1, 3)), Outputs(torch.zeros(1, 3))]
    terms = run(gave, real_batch(torch.tensor([1])), Progress(), stretch)
    assert {name: term.value.item() for name, term in terms.items()} == {
        "ce": pytest.approx(3 * math.log(3))
    }


def test_a_stage_before_the_last_is_needed() -> None:
    """The error counts the stages."""
    alone = shapes(taps([torch.empty(1, 8, 2, 2)]), None)
    with pytest.raises(SettingError, match="at least 2 behind the stem"):
        check_needs("one", ONE.needs, alone)


def test_training() -> None:
    """Gate and all branches move in one update; the trunk is shared; what is measured."""
    net = network(0)
    run = joint("one", toy_shapes(net))
    branches = {f"branch{i}": section(network(i), -2, None, (1, 8, 8)) for i in (1, 2)}
    task = DistillTask({"student": net, **branches}, run)
    (stretch,) = run.stretches()
    task.enter(stretch)
    learner = Learner(task, stretch, OptimConfig(), launch(Runtime(device="cpu")))
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    batch = BatchMaker(loader(), None, run, 0, seed=0).batch(0, stretch)
    assert learner.update(batch, [], Progress(), 1.0).keys() == {"ce", "one_ce", "one_kd"}
    still = {n for n, p in task.named_parameters() if torch.equal(p, before[n])}
    # A bias in front of a batch norm changes nothing, so it has no gradient but rounding.
    assert not {n for n in still if "gate.0.bias" not in n}
    task.eval()
    pixels = torch.zeros(5, *images().size)
    empty = torch.empty(0, dtype=torch.int64)
    new = Batch(pixels, empty, empty, {"unlabelled": slice(0, 5)})
    found = run.measured(task.given(new, [], stretch), new, stretch)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == dict.fromkeys(
        ("ensemble", "branch1", "branch2"), (5, 3)
    )


def test_gradcheck() -> None:
    """Through the ensemble and the divergence, targets held constant."""
    z, shares = maps(3, 4).requires_grad_(), maps(3, 2, seed=1).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, g: ensemble([a, 2 * a], g), (z, shares))
    mixed = maps(3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda a: ensemble_divergence([a], mixed), (z,))
