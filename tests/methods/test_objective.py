"""The objective: presets are the published sums, whatever rows a batch has."""

import pytest
import torch
from steps import batch, joint, speak, values, weighted, weights
from torch import Tensor

from fskd.errors import SettingError
from fskd.losses.targets import cross_entropy, kl_divergence, mixed_cross_entropy
from fskd.methods.base import methods
from fskd.methods.compose import join
from fskd.methods.objective import Objective
from fskd.train.step import total_loss
from fskd.types import Outputs

K = 4


def logits(rows: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, K, generator=rng, dtype=torch.float64).requires_grad_(True)


def pair(rows: int) -> dict[str, Outputs]:
    return {"student": Outputs(logits(rows, 1)), "teacher": Outputs(logits(rows, 2))}


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


def test_presets() -> None:
    """What each method's settings say of labels and soft targets."""
    found = {name: methods.get(name).Settings().objective() for name in methods.names()}
    assert found["ce"] == Objective()
    assert found["kd"] == Objective(0.1, 0.9)
    assert found["kdplus"] == found["kdregion"] == found["pe"] == Objective(0.1, 0.9, 1.0)
    assert found["mixup"] == Objective(mixed_weight=1.0)
    assert found["at"] == found["rkd"] == found["fsp"] == Objective()
    assert found["sskd"] == Objective(0.1, 0.9, 0.0)
    assert found["kd"].weights["generated"] == 0.9
    assert (found["ce"].asks, found["ce"].makes) == (False, False)
    assert (found["kd"].asks, found["kd"].makes) == (True, True)
    assert (found["sskd"].asks, found["sskd"].makes) == (True, False)
    assert (found["mixup"].asks, found["mixup"].makes) == (False, True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("b", "m"), [(5, 0), (5, 3), (0, 3), (1, 1)])
@pytest.mark.parametrize("name", ["ce", "kd", "kdplus"])
def test_formulas(name: str, b: int, m: int, temperature: float) -> None:
    """Value and gradient of the weighted sum are those of the definitions."""
    settings = {} if name == "ce" else {"temperature": temperature}
    method, rows, nets = joint(name, **settings), batch(b, m), pair(b + m)
    student, teacher = nets["student"].logits, nets["teacher"].logits
    own, expected = method.methods[name].settings.objective().weights, {}
    if b:
        expected["ce"] = cross_entropy(student[:b], rows.targets)
    if b and name != "ce":
        expected["kd"] = kl_divergence(student[:b], teacher[:b], temperature)
    if m and name != "ce":
        expected["generated"] = kl_divergence(student[b:], teacher[b:], temperature)
    found = speak(method, nets, rows)
    assert weights(found) == {term: own[term] for term in expected}
    for term, value in expected.items():
        torch.testing.assert_close(found[term].value, value)
    if expected:
        total = torch.stack([own[term] * value for term, value in expected.items()]).sum()
        torch.testing.assert_close(gradient(weighted(found), student), gradient(total, student))
        (none,) = torch.autograd.grad(weighted(found), teacher, allow_unused=True)
        assert none is None


@pytest.mark.parametrize("b", [0, 3])
@pytest.mark.parametrize("m", [0, 2])
def test_unlabelled_rows(b: int, m: int) -> None:
    """They have soft targets like real rows, in one mean with them, and no label."""
    rows, nets, u = batch(b, m, unlabelled=4), pair(b + 4 + m), 4
    student, teacher = nets["student"].logits, nets["teacher"].logits
    found = speak(joint("kdplus"), nets, rows)
    known, made = slice(0, b + u), slice(b + u, b + u + m)
    expected = {"kd": kl_divergence(student[known], teacher[known], 4.0)}
    if b:
        expected["ce"] = cross_entropy(student[:b], rows.targets)
    if m:
        expected["generated"] = kl_divergence(student[made], teacher[made], 4.0)
    assert found.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found[term].value, value)
        torch.testing.assert_close(gradient(found[term].value, student), gradient(value, student))


def test_views_have_no_soft_targets() -> None:
    """Rows behind the generated ones belong to the method that asked for them."""
    nets = pair(9)
    rows = batch(3, 2)
    seen = rows._replace(
        inputs=torch.zeros(9, 1, 2, 2), parts={**rows.parts, "turned": slice(5, 9)}
    )
    base = {name: one.rows(slice(0, 5)) for name, one in nets.items()}
    found, plain = (values(speak(joint("kdplus"), *of)) for of in ((nets, seen), (base, rows)))
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value)


def test_label_smoothing_with_soft_targets() -> None:
    """Smoothed labels beside KD: the fused terms know no smoothing, so theirs is replaced."""
    student, teacher, rows = logits(5, 1), logits(5, 2), batch(3, 2)
    own = Objective(0.5, 0.5, 1.0, label_smoothing=0.2)
    found = own.terms(rows, [student], teacher)
    smooth = cross_entropy(student[:3], rows.targets, 0.2)
    assert not torch.isclose(smooth, cross_entropy(student[:3], rows.targets))
    torch.testing.assert_close(found["ce"], smooth)
    torch.testing.assert_close(found["kd"], kl_divergence(student[:3], teacher[:3], 4.0))
    torch.testing.assert_close(gradient(found["ce"], student), gradient(smooth, student))


def test_several_students_learn_the_labels() -> None:
    """Their cross-entropies are added; soft targets are the first one's."""
    ours, peer, teacher = logits(3, 1), logits(3, 3), logits(3, 2)
    rows = batch(3)
    found = Objective(0.1, 0.9).terms(rows, [ours, peer], teacher)
    both = cross_entropy(ours, rows.targets) + cross_entropy(peer, rows.targets)
    torch.testing.assert_close(found["ce"], both)
    torch.testing.assert_close(found["kd"], kl_divergence(ours, teacher, 4.0))


def test_mixed_labels() -> None:
    student, rows = logits(5, 1), batch(3, 2)
    parents, shares = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.3, 0.7], [0.5, 0.5]])
    own = Objective(mixed_weight=2.0)
    found = own.terms(rows._replace(parents=parents, shares=shares), [student], None)
    expected = mixed_cross_entropy(student[3:], parents, shares)
    torch.testing.assert_close(found["mixed"], expected)
    with pytest.raises(ValueError, match="mixes no labelled rows"):
        own.terms(rows, [student], None)


def test_only() -> None:
    """Other weights become 0; without any term there is no objective."""
    whole = Objective(0.1, 0.9, mixed_weight=0.5)
    assert whole.only(frozenset()) is None
    kept = whole.only(frozenset({"ce", "generated"}))
    assert kept is not None
    assert kept.weights == {"ce": 0.1, "kd": 0.0, "generated": 0.9, "mixed": 0.0}
    assert kept.asks
    labels = whole.only(frozenset({"ce"}))
    assert labels is not None
    assert (labels.asks, labels.makes) == (False, False)
    assert whole.only(frozenset(whole.weights)) == whole._replace(generated_weight=0.9)


def test_temperatures_that_disagree_are_one_line() -> None:
    parts = [("kd", methods.get("kd").Settings(temperature=2.0))]
    parts += [("at", methods.get("at").Settings(kd_weight=1.0, temperature=3.0))]
    # Only the first one's soft targets count, so there is nothing to disagree about.
    join(parts).stretches()
    # SSKD has no soft targets for generated rows; those of KD+ have a temperature of their own.
    plus = ("kdplus", methods.get("kdplus").Settings(temperature=3.0))
    with pytest.raises(SettingError) as caught:
        join([("sskd", methods.get("sskd").Settings()), plus]).stretches()
    message = str(caught.value)
    assert "\n" not in message
    assert "temperature: 4 beside 3 of kdplus" in message
    assert "one temperature" in message


def test_labels_are_weighted_as_the_first_method_wants() -> None:
    both = join([(name, methods.get(name).Settings()) for name in ("at", "kdplus")])
    objective = both.stretches()[-1].objective
    assert objective is not None
    assert objective.weights == {"ce": 1.0, "kd": 0.9, "generated": 1.0, "mixed": 0.0}


def test_total_is_divided_by_the_unit_weights() -> None:
    found = speak(joint("kdplus"), pair(5), batch(3, 2))
    assert total_loss(found, joint("kdplus").unit).item() == pytest.approx(
        weighted(found).item() / 2.0
    )
