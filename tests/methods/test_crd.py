"""CRD against loops over candidates, its memories, its negatives and resuming."""

import math

import pytest
import torch
from steps import alone, joint, net, shapes, speak, step_of

from fskd.errors import SettingError
from fskd.methods.crd import CRD, contrast_scores, contrastive_loss, draw_negatives
from fskd.seeding import torch_generator
from fskd.types import Batch, Outputs, Shapes

N, DIM = 12, 3
SHAPES = shapes(net(4, 5), n=N)
SETTINGS = {"feat_dim": DIM, "n_negatives": 6}


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Random vectors in float64."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(of: Shapes = SHAPES, **settings: int) -> CRD:
    """CRD alone."""
    method = alone(joint("crd", of, **settings))
    assert isinstance(method, CRD)
    return method


def build() -> CRD:
    """A small CRD in float64."""
    return make(**SETTINGS).double()


def step(method: CRD, seed: int, n: int = 4) -> dict[str, torch.Tensor]:
    """One call on random embeddings."""
    indices = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n]
    batch = Batch(torch.zeros(n, 1, 2, 2), indices % 4, indices)
    student, teacher = (Outputs(embedding=rows(n, 5, seed + i)) for i in (1, 2))
    found = method.terms(step_of(batch, student=student, teacher=teacher))
    return {name: term.value for name, term in found.items()}


def test_slow_twin() -> None:
    """Scores and loss, candidate by candidate."""
    anchors = torch.nn.functional.normalize(rows(2, DIM), dim=1)
    memory = torch.nn.functional.normalize(rows(N, DIM, 1), dim=1)
    candidates = torch.tensor([[0, 4, 7, 7], [3, 1, 2, 11]])
    z, noise, total = 2.5, 3 / N, 0.0
    for b in range(2):
        for place, k in enumerate(candidates[b].tolist()):
            dot = sum(memory[k, d].item() * anchors[b, d].item() for d in range(DIM))
            q = math.exp(dot / 0.07) / z
            share = q if place == 0 else noise
            total -= math.log(share / (q + noise + 1e-7)) / 2
    scores = contrast_scores(anchors, memory, candidates, 0.07) / z
    assert contrastive_loss(scores, N).item() == pytest.approx(total, rel=1e-12)


def test_both_directions_and_memory() -> None:
    """The student is compared with the teacher's memory and the reverse; then both move."""
    method = build()
    old_s, old_t = method.memory_student.clone(), method.memory_teacher.clone()
    assert not torch.equal(old_s, old_t)
    student, teacher = rows(2, 5, 5), rows(2, 5, 6)
    indices, candidates = torch.tensor([3, 8]), torch.tensor([[3, 0, 1], [8, 2, 6]])
    loss = method.contrast(student, teacher, indices, candidates)
    unit = torch.nn.functional.normalize
    v_s, v_t = unit(method.embed_student(student)), unit(method.embed_teacher(teacher))
    expected = 0.0
    for anchors, memory, z in ((v_s, old_t, method.z_student), (v_t, old_s, method.z_teacher)):
        scores = contrast_scores(anchors, memory, candidates, 0.07)
        torch.testing.assert_close(z, scores.mean() * N)
        expected += contrastive_loss(scores / z, N).item()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for old, new, v in (
        (old_s, method.memory_student, v_s),
        (old_t, method.memory_teacher, v_t),
    ):
        torch.testing.assert_close(new[indices], unit(0.5 * old[indices] + 0.5 * v))
        rest = [i for i in range(N) if i not in (3, 8)]
        assert torch.equal(new[rest], old[rest])


def test_z_is_fixed_by_the_first_batch() -> None:
    """Later batches do not change Z."""
    method = build()
    assert method.z_student == -1
    step(method, 0)
    z = method.z_student.clone()
    assert z > 0
    step(method, 1)
    assert method.z_student == z


def test_memory_starts_from_a_fixed_seed() -> None:
    """Uniform on +-1/sqrt(dim/3), the same in every run."""
    torch.manual_seed(5)
    first, second = make(), make()
    assert torch.equal(first.memory_student, second.memory_student)
    bound = 1 / math.sqrt(128 / 3)
    assert first.memory_student.abs().max() <= bound
    assert first.memory_student.abs().max() > 0.9 * bound


@pytest.mark.parametrize("n_negatives", [1, 5, 9, 50])
def test_negatives(n_negatives: int) -> None:
    """Always of another class."""
    classes = torch.tensor([0, 3, 0, 2])
    picks = draw_negatives(SHAPES.targets, classes, n_negatives, torch_generator(0, "test"))
    assert picks.shape == (4, n_negatives)
    for label, row in zip(classes.tolist(), picks, strict=True):
        assert (SHAPES.targets[row] != label).all()
    if n_negatives == 50:
        assert all(len(row.unique()) > 5 for row in picks)


def test_negatives_cover_all_others() -> None:
    """Every example of another class can be drawn, about equally often."""
    picks = draw_negatives(SHAPES.targets, torch.tensor([1]), 9000, torch_generator(1, "test"))
    counts = torch.bincount(picks[0], minlength=N)
    assert (counts[SHAPES.targets == 1] == 0).all()
    assert ((counts[SHAPES.targets != 1] - 1000).abs() < 150).all()


def test_resume_repeats() -> None:
    """After loading a state the same steps give the same values; draws differ between steps."""
    method, resumed = build(), build()
    step(method, 0)
    resumed.load_state_dict(method.state_dict())
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert torch.equal(step(method, seed)["crd"], step(resumed, seed)["crd"])
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert not torch.equal(method.candidates(batch, 0), method.candidates(batch, 1))
    assert torch.equal(method.candidates(batch, 0), resumed.candidates(batch, 0))
    other = make(SHAPES._replace(seed=1), **SETTINGS)
    assert not torch.equal(method.candidates(batch, 0), other.candidates(batch, 0))


SUBSETS = {
    "two images": [0, 1],
    "a class with one image": [0, 0, 0, 1],
    "a class that is not there": [3, 0, 0, 3, 1],
    "one image of each class": [2, 0, 1, 3],
    "two classes": [1, 0, 1, 1, 0, 0],
}


@pytest.mark.parametrize("targets", SUBSETS.values(), ids=SUBSETS.keys())
def test_any_subset(targets: list[int]) -> None:
    """Far more negatives than images: each of another class, loss and gradients finite."""
    classes = torch.tensor(targets)
    of = SHAPES._replace(n_train=len(targets), targets=classes)
    method, n = make(of, feat_dim=DIM), len(targets)
    assert method.settings.model_dump()["n_negatives"] == 16384
    rows_ = Batch(torch.zeros(n, 1, 2, 2), classes, torch.arange(n))
    candidates = method.candidates(rows_, 0)
    assert torch.equal(candidates[:, 0], rows_.indices)
    assert (classes[candidates[:, 1:]] != classes[:, None]).all()
    for row, label in zip(candidates[:, 1:], targets, strict=True):
        assert len(row.unique()) == int((classes != label).sum())  # each of them is drawn
    student, teacher = (Outputs(embedding=rows(n, 5, i).float()) for i in (1, 2))
    for _ in range(3):
        loss = method.terms(step_of(rows_, student=student, teacher=teacher))["crd"].value
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("tau", [0.02, 1e3])
@pytest.mark.parametrize("factor", [0.0, 1e-12, 1e12])
def test_extreme_values(tau: float, factor: float) -> None:
    """Any length of the embeddings, and the least and a large temperature, in float32."""
    method = alone(joint("crd", SHAPES, **SETTINGS, tau=tau))
    assert isinstance(method, CRD)
    student = (factor * rows(4, 5)).float().requires_grad_()
    candidates = torch.arange(8).view(4, 2)
    loss = method.contrast(student, rows(4, 5, 1).float(), torch.arange(4), candidates)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    with pytest.raises(ValueError, match="tau"):
        CRD.Settings(tau=0.01)


def test_one_class_is_refused() -> None:
    """Without another class there are no negatives."""
    of = SHAPES._replace(targets=torch.zeros(N, dtype=torch.long))
    with pytest.raises(SettingError, match="at least 2 classes"):
        make(of)


def test_no_real_rows() -> None:
    """Generated rows have no place in the memory."""
    method = joint("crd", SHAPES, **SETTINGS)
    outputs = Outputs(rows(2, 4).float(), rows(2, 5).float())
    nets, before = {"student": outputs, "teacher": outputs}, method.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    made = {"generated": slice(0, 2)}
    empty = torch.zeros(0, dtype=torch.long)
    assert speak(method, nets, Batch(torch.zeros(2, 1, 2, 2), empty, empty, made)) == {}
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_gradcheck() -> None:
    """Gradients of scores and loss."""
    memory, candidates = rows(N, DIM, 1), torch.tensor([[0, 4, 7], [3, 1, 2]])
    anchors = torch.nn.functional.normalize(rows(2, DIM), dim=1).requires_grad_(True)

    def loss(v: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(contrast_scores(v, memory, candidates, 0.5) / 3, N)

    assert torch.autograd.gradcheck(loss, anchors)


def test_full_precision_under_autocast() -> None:
    """Scores are not rounded to bfloat16."""
    anchors, memory = rows(4, 16).float(), rows(N, 16, 1).float()
    candidates = torch.arange(8).view(4, 2)
    expected = contrast_scores(anchors, memory, candidates, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast_scores(anchors, memory, candidates, 1.0), expected)
        assert (
            make(**SETTINGS)
            .contrast(rows(4, 5).float(), rows(4, 5).float(), torch.arange(4), candidates)
            .isfinite()
        )
