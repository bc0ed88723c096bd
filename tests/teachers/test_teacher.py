"""A teacher's answers are counted, and kept where that saves some."""

from collections.abc import Iterator

import pytest
import torch
from toys import N, loader, network

from fskd.errors import TrainingError
from fskd.teachers.base import Teacher
from fskd.train.batches import with_rows


def test_cached_logits_are_the_teachers() -> None:
    teacher = Teacher(network(1), torch.device("cpu"))
    batch = loader().batch(0)
    made = with_rows(batch, "generated", batch.inputs[:3] * 0.5)
    read = frozenset({"logits"})
    plain = teacher.answer(made, read)
    assert teacher.queries == 11
    inputs = torch.cat([loader().batch(step).inputs for step in range(3)])
    order = torch.cat([loader().batch(step).indices for step in range(3)])
    first = torch.stack([(order == i).nonzero()[0, 0] for i in range(N)])
    teacher.remember([inputs[first[:7]], inputs[first[7:]]], N, N)
    assert teacher.queries == 11 + N
    torch.testing.assert_close(teacher.answer(made, read).logits, plain.logits)
    assert teacher.queries == 11 + N + 3
    torch.testing.assert_close(teacher.answer(batch, read).logits, plain.logits[:8])
    assert teacher.queries == 11 + N + 3
    assert not teacher.answer(made, read).logits.requires_grad


@pytest.mark.parametrize("n_kept", [1, 5, N - 1, N])
def test_the_first_examples_are_remembered_when_one_is_needed(n_kept: int) -> None:
    teacher = Teacher(network(1), torch.device("cpu"))
    rows = loader(N).batch(0)
    in_order = rows.inputs[rows.indices.argsort()]
    expected = teacher.answer(rows, frozenset({"logits"})).logits
    given: list[int] = []

    def parts() -> Iterator[torch.Tensor]:
        for part in in_order[:n_kept].split(4):
            given.append(len(part))
            yield part

    teacher.queries = 0
    teacher.remember(parts(), n_kept, N)
    assert teacher.queries == n_kept
    assert not given, "nothing is asked before it is needed"
    for turn in (1, 2):
        found = teacher.answer(rows, frozenset({"logits"})).logits
        torch.testing.assert_close(found, expected)
        assert sum(given) == n_kept
        assert teacher.queries == n_kept + turn * (N - n_kept)
    made = with_rows(rows, "generated", rows.inputs[:2] + 1)
    both = teacher.answer(made, frozenset({"logits"})).logits
    torch.testing.assert_close(both[:N], expected)
    torch.testing.assert_close(both[N:], teacher.ask(made.inputs[N:]).logits)


def test_a_budget_is_kept() -> None:
    teacher = Teacher(network(1), torch.device("cpu"), budget=20)
    batch = loader().batch(0)
    for _ in range(2):
        teacher.answer(batch, frozenset({"logits"}))
    with pytest.raises(TrainingError, match=r"24 rows, more than teacher.queries \(20\)"):
        teacher.answer(batch, frozenset({"logits"}))


def test_batch_statistics_are_not_remembered() -> None:
    teacher, whole = Teacher(network(1), torch.device("cpu")), loader(N).batch(0)
    teacher.remember([whole.inputs[whole.indices.argsort()]], N, N)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    kept = teacher.answer(whole, frozenset({"logits"})).logits
    other = teacher.answer(whole, frozenset({"logits"}), "batch").logits
    assert teacher.queries == 2 * N
    assert not torch.allclose(kept, other)
    assert all(torch.equal(value, before[name]) for name, value in teacher.net.state_dict().items())


def test_a_gradient_of_the_images_is_kept_if_asked_for() -> None:
    teacher, batch = Teacher(network(1), torch.device("cpu")), loader().batch(0)
    rows = batch._replace(inputs=batch.inputs.requires_grad_())
    assert not teacher.answer(rows, frozenset({"logits"})).logits.requires_grad
    logits = teacher.answer(rows, frozenset({"logits"}), input_grad=True).logits
    (slope,) = torch.autograd.grad(logits.sum(), rows.inputs)
    assert slope.abs().sum() > 0
    assert all(p.grad is None for p in teacher.net.parameters())
