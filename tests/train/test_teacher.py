"""The teacher's remembered logits: those that it would give, asked once and counted."""

from collections.abc import Iterator

import pytest
import torch

from fskd.data.augment import AugmentSettings
from fskd.data.loader import DeviceLoader
from fskd.errors import TrainingError
from fskd.models.catalog import build
from fskd.models.taps import LOGITS, FeatureNet
from fskd.teachers.base import Teacher
from fskd.types import Batch, ImageSet

N, K, CPU = 12, 3, torch.device("cpu")


def images() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 1, 8, 8), generator=rng, dtype=torch.uint8)
    names = tuple("abc")
    return ImageSet(pixels, torch.arange(N) % K, names, (0.5,), (0.25,), "f", (1, 8, 8))


def network(seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    return FeatureNet(build("cnn_tiny", K, 1))


def loader(rows: int) -> DeviceLoader:
    return DeviceLoader(images(), torch.arange(N), rows, AugmentSettings(), 0, CPU)


def longer(batch: Batch, more: torch.Tensor) -> Batch:
    """The batch with generated rows."""
    n = len(batch.inputs)
    parts = {"generated": slice(n, n + len(more))}
    return batch._replace(inputs=torch.cat([batch.inputs, more]), parts=parts)


def test_cached_logits_are_the_teachers() -> None:
    teacher, stream = Teacher(network(1), CPU), loader(8)
    batch = stream.batch(0)
    made = longer(batch, batch.inputs[:3] * 0.5)
    plain = teacher.answer(made, LOGITS)
    assert teacher.queries == 11
    inputs = torch.cat([stream.batch(step).inputs for step in range(3)])
    order = torch.cat([stream.batch(step).indices for step in range(3)])
    first = torch.stack([(order == i).nonzero()[0, 0] for i in range(N)])
    teacher.remember([inputs[first[:7]], inputs[first[7:]]], N, N)
    assert teacher.queries == 11 + N
    torch.testing.assert_close(teacher.answer(made, LOGITS).logits, plain.logits)
    assert teacher.queries == 11 + N + 3
    torch.testing.assert_close(teacher.answer(batch, LOGITS).logits, plain.logits[:8])
    assert teacher.queries == 11 + N + 3
    assert not teacher.answer(made, LOGITS).logits.requires_grad


@pytest.mark.parametrize("n_kept", [1, 5, N - 1, N])
def test_the_first_examples_are_remembered_when_one_is_needed(n_kept: int) -> None:
    teacher = Teacher(network(1), CPU)
    rows = loader(N).batch(0)
    in_order = rows.inputs[rows.indices.argsort()]
    expected = teacher.answer(rows, LOGITS).logits
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
        found = teacher.answer(rows, LOGITS).logits
        torch.testing.assert_close(found, expected)
        assert sum(given) == n_kept
        assert teacher.queries == n_kept + turn * (N - n_kept)
    made = longer(rows, rows.inputs[:2] + 1)
    both = teacher.answer(made, LOGITS).logits
    torch.testing.assert_close(both[:N], expected)
    torch.testing.assert_close(both[N:], teacher.ask(made.inputs[N:]).logits)


def test_batch_statistics_are_not_remembered() -> None:
    teacher = Teacher(network(1), CPU)
    whole = loader(N).batch(0)
    teacher.remember([whole.inputs[whole.indices.argsort()]], N, N)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    kept = teacher.answer(whole, LOGITS).logits
    other = teacher.answer(whole, LOGITS, "batch").logits
    assert teacher.queries == 2 * N
    assert not torch.allclose(kept, other)
    assert all(torch.equal(value, before[name]) for name, value in teacher.net.state_dict().items())


def test_a_gradient_of_the_images_is_kept_if_asked_for() -> None:
    teacher, batch = Teacher(network(1), CPU), loader(8).batch(0)
    rows = batch._replace(inputs=batch.inputs.requires_grad_())
    assert not teacher.answer(rows, LOGITS).logits.requires_grad
    logits = teacher.answer(rows, LOGITS, input_grad=True).logits
    (slope,) = torch.autograd.grad(logits.sum(), rows.inputs)
    assert slope.abs().sum() > 0
    assert all(p.grad is None for p in teacher.net.parameters())


def test_budget() -> None:
    teacher, batch = Teacher(network(1), CPU, budget=20), loader(8).batch(0)
    teacher.answer(batch, LOGITS)
    teacher.ask(batch.inputs)
    with pytest.raises(TrainingError, match="24 rows, more than"):
        teacher.answer(batch, LOGITS)
