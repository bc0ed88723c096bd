"""SSKD: its views, the choice of rows and every term against loops."""

import math

import pytest
import torch
from steps import alone, joint, net, phase, shapes, speak, values, weights

from fskd.errors import SettingError
from fskd.methods.compose import Joint
from fskd.methods.needs import check_needs
from fskd.methods.sskd import (
    ROTATIONS,
    SSKD,
    head_loss,
    kept_divergence,
    kept_rows,
    similarities,
)
from fskd.types import Batch, Outputs

SHAPES = shapes(net(4, 16), inputs=(3, 5, 5))


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Random rows in float64."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: list[float], temperature: float) -> list[float]:
    """Probabilities of one row."""
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def slow_divergence(
    student: torch.Tensor, teacher: torch.Tensor, kept: list[int], t: float
) -> float:
    """T^2 times the mean over kept rows of sum p log(p/q)."""
    total = 0.0
    for i in kept:
        q, p = softmax(student[i].tolist(), t), softmax(teacher[i].tolist(), t)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return t * t * total / len(kept)


def slow_kept(scores: torch.Tensor, truth: list[int], ratio: float) -> list[int]:
    """Rows sorted by the rank of the truth, cut after the right ones and a share of the wrong."""
    ranks = [
        sum(score > row[right] for score in row)
        for row, right in zip(scores.tolist(), truth, strict=True)
    ]
    n_wrong = sum(rank > 0 for rank in ranks)
    n_kept = len(ranks) - n_wrong + int(n_wrong * ratio)
    return sorted(sorted(range(len(ranks)), key=lambda i: ranks[i])[:n_kept])


def cosine(a: list[float], b: list[float]) -> float:
    """Cosine similarity."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 1.0])
def test_kept_rows(ratio: float) -> None:
    """All right rows and the best-ranked share of the wrong ones."""
    scores, truth = rows(15, 6), [i % 6 for i in range(15)]
    expected = slow_kept(scores, truth, ratio)
    assert kept_rows(scores, torch.tensor(truth), ratio).nonzero().squeeze(1).tolist() == expected


def test_kept_divergence() -> None:
    """Mean over kept rows only; 0 where none is kept; gradients checked."""
    student, teacher = rows(6, 4).requires_grad_(True), rows(6, 4, 1)
    keep = torch.tensor([True, False, True, True, False, False])
    value = kept_divergence(student, teacher, keep, 0.5)
    expected = slow_divergence(student, teacher, [0, 2, 3], 0.5)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert kept_divergence(student, teacher, torch.zeros(6, dtype=torch.bool), 0.5) == 0
    assert torch.autograd.gradcheck(lambda s: kept_divergence(s, teacher, keep, 2.0), student)


def test_head_loss() -> None:
    """Cross-entropy over cosines, copy by copy; gradients checked."""
    rotated, upright = rows(6, 3).requires_grad_(True), rows(2, 3, 1)
    owners = torch.tensor([0, 0, 0, 1, 1, 1])
    total = 0.0
    for copy, owner in zip(rotated.tolist(), owners.tolist(), strict=True):
        scores = [cosine(copy, image) for image in upright.tolist()]
        total -= math.log(softmax(scores, 1.0)[owner]) / 6
    assert head_loss(rotated, upright, owners).item() == pytest.approx(total, rel=1e-12)
    assert torch.autograd.gradcheck(lambda r: head_loss(r, upright, owners), rotated)


def make_batch(n: int) -> Batch:
    """Real rows only."""
    inputs = torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(9))
    return Batch(inputs, torch.arange(n) % 4, torch.arange(n))


def with_views(method: Joint, rows: Batch) -> Batch:
    """The rows with their rotations."""
    return method.views(rows, torch.Generator(), phase(method))


def test_views() -> None:
    """Blocks of 90, 180 and 270 degrees; four quarter turns give the image back."""
    real, method = make_batch(2), joint("sskd", SHAPES)
    inputs = torch.cat([real.inputs, torch.zeros(1, 3, 5, 5)])
    batch = real._replace(inputs=inputs, parts={"generated": slice(2, 3)})
    seen = with_views(method, batch)
    assert torch.equal(seen.inputs[:3], inputs)
    assert seen.part("rotated") == slice(3, 9)
    views = seen.inputs[seen.part("rotated")]
    for turns in (1, 2, 3):
        block = views[2 * turns - 2 : 2 * turns]
        assert torch.equal(torch.rot90(block, 4 - turns, (2, 3)), batch.inputs[:2])
    assert torch.equal(SSKD.by_image(views, seen)[ROTATIONS:], views[1::2])
    assert SSKD.owners(seen).tolist() == [0, 0, 0, 1, 1, 1]
    empty = torch.zeros(0, dtype=torch.long)
    none = make_batch(0)._replace(inputs=inputs[2:], targets=empty, indices=empty)
    assert with_views(method, none) == none


@pytest.mark.parametrize("n", [1, 5])
def test_main_terms(n: int) -> None:
    """Every term of the main phase against its loop."""
    method = joint("sskd", SHAPES, tf_ratio=0.5).double()
    batch = with_views(method, make_batch(n))
    student = Outputs(rows(4 * n, 4), rows(4 * n, 16, 1))
    teacher = Outputs(rows(4 * n, 4, 2), rows(4 * n, 16, 3))
    found = speak(method, {"student": student, "teacher": teacher}, batch)
    assert weights(found) == {"ce": 0.1, "kd": 0.9, "tf": 2.7, "ss": 10.0}
    terms, own = values(found), alone(method)
    assert isinstance(own, SSKD)
    # Row of the copy of image i turned by 90*r degrees.
    copies = [r * n + i for i in range(n) for r in (1, 2, 3)]
    owners = [i for i in range(n) for _ in range(3)]
    labels = [i % 4 for i in owners]
    upright = list(range(n))
    expected = slow_divergence(student.logits, teacher.logits, upright, 4.0)
    assert terms["kd"].item() == pytest.approx(expected, rel=1e-10)
    kept = [copies[i] for i in slow_kept(teacher.logits[copies], labels, 0.5)]
    if kept:
        expected = slow_divergence(student.logits, teacher.logits, kept, 4.0)
        assert terms["tf"].item() == pytest.approx(expected, rel=1e-10)
    tables = []
    for head, outputs in ((own.student_head, student), (own.teacher_head, teacher)):
        projected = head(outputs.embedding).tolist()
        table = [[cosine(projected[c], projected[u]) for u in upright] for c in copies]
        tables.append(torch.tensor(table, dtype=torch.float64))
    kept = slow_kept(tables[1], owners, 0.75)
    expected = slow_divergence(tables[0], tables[1], kept, 0.5)
    assert terms["ss"].item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_phases() -> None:
    """The teacher's head is trained first and alone, the student's head with the student."""
    method = joint("sskd", SHAPES)
    head, main = method.stretches()
    assert (head.name, head.share) == ("head", 0.25)
    assert head.trains == ("method.parts.sskd.teacher_head",)
    assert [run.net for run in head.runs] == ["teacher"]
    assert not head.generated
    assert main.trains == ("student", "method.parts.sskd.student_head")
    assert not main.generated
    batch, outputs = with_views(method, make_batch(2)), Outputs(embedding=torch.randn(8, 16))
    found = speak(method, {"teacher": outputs}, batch, "head")
    assert weights(found) == {"head": 1.0}
    own = alone(method)
    assert isinstance(own, SSKD)
    projected = own.teacher_head(outputs.embedding)
    turned = projected[2:].unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1)
    expected = head_loss(turned, projected[:2], torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(found["head"].value, expected)


def test_square_images() -> None:
    """Images that are not square cannot be stacked with their rotations."""
    with pytest.raises(SettingError, match="4x5"):
        check_needs("sskd", SSKD.needs, SHAPES._replace(inputs=(3, 4, 5)))


def test_full_precision_under_autocast() -> None:
    """Similarities are not rounded to bfloat16."""
    rotated, upright = rows(6, 8).float(), rows(2, 8, 1).float()
    expected = similarities(rotated, upright)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarities(rotated, upright), expected)
