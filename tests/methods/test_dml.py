"""DML against loops over students, peers, rows and classes."""

import math

import pytest
import torch
from steps import batch, joint, speak

from fskd.methods.dml import DML, mutual_loss
from fskd.types import Outputs


def students(n: int, rows: int) -> list[torch.Tensor]:
    """Random logits of n students in float64."""
    rng = torch.Generator().manual_seed(n)
    return [
        torch.randn(rows, 4, generator=rng, dtype=torch.float64).requires_grad_(True)
        for _ in range(n)
    ]


def softmax(row: list[float]) -> list[float]:
    """Class probabilities of one row."""
    powers = [math.exp(z) for z in row]
    return [power / sum(powers) for power in powers]


def slow_mutual(logits: list[torch.Tensor], i: int) -> float:
    """1/(n-1) sum over peers j of the mean over rows of KL(p_j || p_i)."""
    total, n, rows = 0.0, len(logits), len(logits[0])
    for j in range(n):
        if j == i:
            continue
        for b in range(rows):
            p, q = softmax(logits[j][b].tolist()), softmax(logits[i][b].tolist())
            total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / rows
    return total / (n - 1)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_slow_twin(n: int, rows: int) -> None:
    """The mutual term is the sum over students."""
    logits = students(n, rows)
    expected = sum(slow_mutual(logits, i) for i in range(n))
    assert mutual_loss(logits).item() == pytest.approx(expected, rel=1e-12)


def test_peers_are_constants() -> None:
    """Student i's gradient is that of its own share, with peers detached."""
    logits = students(3, 4)
    mutual_loss(logits).backward()
    own = logits[1].detach().clone().requires_grad_(True)
    peers = [logits[0].detach(), logits[2].detach()]
    kl = torch.nn.functional.kl_div
    loss = sum(
        kl(own.log_softmax(1), peer.softmax(1), reduction="batchmean") for peer in peers
    ) / len(peers)
    loss.backward()
    torch.testing.assert_close(logits[1].grad, own.grad)


def test_equal_students() -> None:
    """Students that agree have nothing to learn from each other."""
    x = students(2, 3)[0]
    assert mutual_loss([x, x, x]).item() == pytest.approx(0.0, abs=1e-12)


def test_terms() -> None:
    """Labels on real rows, summed over students; peers on all rows; both enter the divisor."""
    method = joint("dml", n_students=3)
    assert method.n_students == 3
    assert [role.peer for role in method.roles.values()] == [True, True]
    logits, names = students(3, 5), ("student", *method.roles)
    nets = {name: Outputs(one) for name, one in zip(names, logits, strict=True)}
    terms = speak(method, nets, batch(3, 2))
    expected = sum(-math.log(softmax(x[b].tolist())[b]) for x in logits for b in range(3)) / 3
    assert terms["ce"].value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(terms["mutual"].value, mutual_loss(logits))
    assert sum(terms[name].weight for name in method.unit & terms.keys()) == 2


def test_gradcheck() -> None:
    """Against the numeric gradient of a student's own share, peers held fixed."""
    own, peer = students(2, 3)
    fixed = peer.detach()
    share = mutual_loss([own.detach(), fixed])

    def own_share(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.kl_div(x.log_softmax(1), fixed.softmax(1), reduction="batchmean")

    assert torch.autograd.gradcheck(own_share, own)
    assert share > own_share(own)


def test_at_least_two_students() -> None:
    """A single student has no peer."""
    with pytest.raises(ValueError, match="n_students"):
        DML.Settings(n_students=1)
