"""Codistillation against loops over students, rows and classes; burn-in and old predictions."""

import math

import pytest
import torch
from steps import alone, batch, joint, shapes, speak, step_of, weights

from fskd.methods.codistillation import Codistillation, agreement_loss
from fskd.types import Batch, Outputs, Progress

LATE = Progress(fraction=0.5)


def students(n: int, rows: int, seed: int = 0) -> list[torch.Tensor]:
    """Random logits of n students in float64."""
    rng = torch.Generator().manual_seed(10 * seed + n)
    made = torch.randn(n, rows, 4, generator=rng, dtype=torch.float64)
    return [one.clone().requires_grad_(True) for one in made]


def softmax(row: list[float]) -> list[float]:
    """Class probabilities of one row."""
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def slow(logits: list[torch.Tensor], followed: list[torch.Tensor]) -> float:
    """The cross-entropy of each student to the mean over its peers."""
    total, n, rows = 0.0, len(logits), len(logits[0])
    for i in range(n):
        for b in range(rows):
            own = softmax(logits[i][b].tolist())
            for c in range(4):
                peers = [softmax(followed[j][b].tolist())[c] for j in range(n) if j != i]
                total -= sum(peers) / (n - 1) * math.log(own[c]) / rows
    return total


def probs(logits: list[torch.Tensor]) -> torch.Tensor:
    """Stacked class probabilities."""
    return torch.stack(logits).softmax(2)


def stale(n: int = 8) -> Codistillation:
    """One that follows old predictions, of n examples."""
    method = alone(joint("codistillation", shapes(n=n), stale=True, burn_in=0.0))
    assert isinstance(method, Codistillation)
    return method.double()


def tell(method: Codistillation, logits: list[torch.Tensor], indices: list[int]) -> dict:
    """Terms of one step on some examples."""
    where = torch.tensor(indices, dtype=torch.long)
    rows = Batch(torch.zeros(len(logits[0]), 1, 2, 2), where % 4, where)
    nets = zip(method.labelled, logits, strict=True)
    return dict(method.terms(step_of(rows, **{name: Outputs(one) for name, one in nets})))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_slow_twin(n: int, rows: int) -> None:
    """The sum over students, with this step's predictions or others."""
    logits, others = students(n, rows), students(n, rows, seed=1)
    for followed in (logits, others):
        found = agreement_loss(logits, probs(followed)).item()
        assert found == pytest.approx(slow(logits, followed), rel=1e-12)


def test_gradcheck() -> None:
    """Numeric and closed-form gradients agree; what is followed gets none."""
    logits, goal = students(3, 2), probs(students(3, 2, seed=1)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *z: agreement_loss(z, goal.detach()), logits)
    agreement_loss(logits, goal).backward()
    assert goal.grad is None


def test_extreme_values() -> None:
    """Logits of 1e4 that disagree: finite, and all of the gradient."""
    ours = torch.tensor([[1e4, -1e4, 0.0, 0.0]], requires_grad=True)
    loss = agreement_loss([ours, -ours.detach()], probs([ours, -ours]))
    loss.backward()
    assert loss.item() == pytest.approx(4e4)
    assert ours.grad.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    low = agreement_loss([ours.bfloat16()] * 2, probs([ours, ours]))
    assert low.dtype == torch.float32


@pytest.mark.parametrize(("real", "generated"), [(3, 2), (1, 0), (0, 2)])
def test_terms(real: int, generated: int) -> None:
    """Labels summed over students on real rows, peers on all rows; both enter the divisor."""
    method = joint("codistillation", n_students=3, distill_weight=0.5)
    assert [role.peer for role in method.roles.values()] == [True, True]
    logits, names = students(3, real + generated), ("student", *method.roles)
    nets = {name: Outputs(one) for name, one in zip(names, logits, strict=True)}
    rows = batch(real, generated)
    found = speak(method, nets, rows, progress=LATE)
    assert weights(found) == ({"ce": 1.0} if real else {}) | {"codistill": 0.5}
    torch.testing.assert_close(found["codistill"].value, agreement_loss(logits, probs(logits)))
    assert "codistill" in method.unit
    early = speak(method, nets, rows, progress=Progress(fraction=0.09))
    assert "codistill" not in early
    assert "codistill" in speak(method, nets, rows, progress=Progress(fraction=0.1))


def test_stale_predictions() -> None:
    """What the peers said of the same examples before; newcomers are left out."""
    method, first, second = stale(), students(2, 3), students(2, 3, seed=1)
    assert tell(method, first, [5, 2, 7]) == {}
    found = tell(method, second, [7, 0, 5])["codistill"].value  # 0 is new
    old = [one[[2, 0]] for one in first]
    now = [one[[0, 2]] for one in second]
    assert found.item() == pytest.approx(slow(now, old), rel=1e-12)
    third = students(2, 1, seed=2)
    found = tell(method, third, [7])["codistill"].value  # said anew in the second step
    assert found.item() == pytest.approx(slow(third, [one[:1] for one in second]), rel=1e-12)


def test_memory() -> None:
    """Kept during the burn-in and in checkpoints; only where it is asked for."""
    of = shapes(n=8)
    method = alone(joint("codistillation", of, stale=True, burn_in=0.9)).double()
    assert isinstance(method, Codistillation)
    assert tell(method, students(2, 2), [1, 3]) == {}
    again = stale()
    again.load_state_dict(method.state_dict())
    assert "codistill" in tell(again, students(2, 1, seed=1), [3])
    assert method.needs.one_process
    fresh = alone(joint("codistillation", of))
    assert not fresh.needs.one_process
    assert not list(fresh.buffers())


def test_stale_rows() -> None:
    """Generated rows have no place in the memory; without real rows there is no term."""
    method = stale()
    rows = batch(2, 3)
    nets = [dict(zip(method.labelled, students(2, 5, i), strict=True)) for i in (0, 1)]
    steps = [step_of(rows, **{name: Outputs(z) for name, z in one.items()}) for one in nets]
    assert method.terms(steps[0]) == {}
    found = method.terms(steps[1])["codistill"].value
    old, now = ([z[:2] for z in one.values()] for one in nets)
    assert found.item() == pytest.approx(slow(now, old), rel=1e-12)
    assert method.known.tolist() == [True, True] + 6 * [False]
    logits = {name: Outputs(z) for name, z in nets[0].items()}
    assert method.terms(step_of(batch(0, 5), **logits)) == {}


def test_at_least_two_students() -> None:
    """A single student has no peer."""
    with pytest.raises(ValueError, match="n_students"):
        Codistillation.Settings(n_students=1)
