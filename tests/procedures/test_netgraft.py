"""NetGraft: blocks in the teacher, what learns and what does not, adaptors merged exactly."""

import copy
from typing import Any

import pytest
import torch
from operating import SIZE, PlainHands, accuracy, copied, digits, moved, trained
from torch import Tensor, nn

from fskd import distill
from fskd.errors import SettingError
from fskd.models.catalog import build
from fskd.models.cnn import ConvNet
from fskd.models.grafts import Grafts
from fskd.models.joints import can_merge, merge, readers
from fskd.models.resnet_cifar import ResNet
from fskd.models.taps import FeatureNet
from fskd.procedures.netgraft import NetGraft, graft_loss, stretches

TEACHER = [[12, 12], [16, 16], [20, 20], [24]]


def cnn(widths: list[list[int]] | None = None, seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(widths or TEACHER, 10, 1)


def alike() -> ConvNet:
    """A student with the teacher's widths and fewer convolutions."""
    return cnn([[12], [16], [20], [24]], 1)


def narrow() -> ConvNet:
    """A student of other widths."""
    return cnn([[6], [8], [10], [12]], 1)


@pytest.fixture(scope="module")
def teacher() -> FeatureNet:
    return trained(cnn())


def procedure(**settings: Any) -> NetGraft:
    return NetGraft(NetGraft.Settings(**settings))


def grafts(student: nn.Module, teacher: FeatureNet) -> Grafts:
    return Grafts(FeatureNet(student), teacher, SIZE, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 3])
def test_slow_twin(rows: int) -> None:
    """Number by number, in both forms; nothing for the teacher."""
    rng = torch.Generator().manual_seed(rows)
    s, t = (torch.randn(rows, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    s.requires_grad_(True)
    t.requires_grad_(True)
    plain = [(a - b) ** 2 for x, y in zip(s.tolist(), t.tolist(), strict=True)
             for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert graft_loss(s, t).item() == pytest.approx(sum(plain) / len(plain), rel=1e-12)
    total = 0.0
    for x, y in zip(s.tolist(), t.tolist(), strict=True):
        of_x, of_y = (sum(a * a for a in z) ** 0.5 for z in (x, y))
        total += sum((a / of_x - b / of_y) ** 2 for a, b in zip(x, y, strict=True))
    loss = graft_loss(s, t, normalised=True)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    loss.backward()
    assert s.grad is not None
    assert t.grad is None


@pytest.mark.parametrize("logits", [0.0, 1e4])
def test_logits_at_the_edge(logits: float) -> None:
    s = torch.full((2, 3), logits, requires_grad=True)
    graft_loss(s, torch.zeros(2, 3), normalised=True).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(("n", "steps", "alone"), [(3, 100, 0.75), (2, 7, 0.5), (4, 9, 0.0)])
def test_stretches(n: int, steps: int, alone: float) -> None:
    """Blocks in order, then growing chains, and something is left for the whole student."""
    found = stretches(n, steps, alone)
    own = int(steps * alone) // n
    assert [x for x in found if x[0] == x[1]] == [(k, k, own) for k in range(n) if own]
    chains = [x for x in found if x[0] != x[1]]
    assert [x[:2] for x in chains] == [(0, k) for k in range(1, n - 1)]
    assert sum(x[2] for x in found) < steps
    assert steps - sum(x[2] for x in found) >= max((x[2] for x in chains), default=0)


def test_too_few_updates_for_grafts(teacher: FeatureNet) -> None:
    """The whole student gets them, and the user is told."""
    hands = PlainHands(FeatureNet(alike()), teacher, 1)
    procedure().run(hands)
    assert hands.lines == ["no block is grafted alone, for want of updates"]
    assert hands.descents == []
    assert stretches(3, 1, 0.75) == []
    assert stretches(1, 8, 0.75) == [(0, 0, 6)]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_block_stands_in_the_teachers_place(block: int, teacher: FeatureNet) -> None:
    """Against the two networks run by hand."""
    student = alike().eval()
    made = grafts(student, teacher)
    x = y = digits()[0][:5]
    nets: list[Any] = [teacher.net] * 3
    nets[block] = student
    stems: Any = nets[0]
    y = stems.stem(y)
    for k in range(3):
        if k == block and k > 0:
            x = y
        y = nets[k].stage(k, y).map
    expected = nets[2].head(y)[1]
    torch.testing.assert_close(made.logits(x, block, block), expected)


def test_the_teachers_own_blocks_change_nothing(teacher: FeatureNet) -> None:
    """Grafted into itself it is itself, wherever and however many."""
    made = grafts(copy.deepcopy(teacher.net), teacher)
    images = digits()[0][:5]
    out = teacher(images, frozenset({"logits", "stages"}))
    for first, last in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2)]:
        x = images if first == 0 else out.stages[first - 1]
        torch.testing.assert_close(made.logits(x, first, last), out.logits)


class Watchful(PlainHands):
    """Notes what moves in every descent."""

    def descend(self, loss: Any, parameters: Any, steps: int, lr: float | None = None) -> float:
        nets = self.student.net, self.teacher.net.net  # type: ignore[union-attr]
        before = [copied(net) for net in nets]
        found = super().descend(loss, parameters, steps, lr)
        self.seen.append([moved(net, old) for net, old in zip(nets, before, strict=True)])
        return found

    seen: list[list[set[str]]]


def test_only_the_grafted_blocks_learn(teacher: FeatureNet) -> None:
    """Everything in them does, running statistics included; nothing in the teacher moves."""
    hands = Watchful(FeatureNet(alike()), teacher, 40)
    hands.seen, before = [], copied(teacher)
    procedure().run(hands)
    names = set(hands.student.net.state_dict())
    parts = [("stages.0.", "stages.1."), ("stages.2.",), ("stages.3.", "fc.")]
    expected = [{n for n in names if n.startswith(part)} for part in parts]
    assert [ours for ours, _ in hands.seen] == [*expected, expected[0] | expected[1]]
    assert not any(theirs for _, theirs in hands.seen)
    assert not moved(teacher, before)
    assert [(steps, lr) for steps, _, lr in hands.descents] == [(10, 1e-3)] * 3 + [(5, None)]
    assert list(hands.notes["losses"]) == ["block 1", "block 2", "block 3", "blocks 1-2"]
    assert len(hands.lines) == 4
    # Batches of the descents, none of the student's later blocks: 10*3 + 5 of 32 rows.
    assert hands.teacher.queries == 35 * 32


def test_a_graft_keeps_the_teachers_accuracy(teacher: FeatureNet) -> None:
    """One block of the student, trained for a moment on 200 images without labels."""
    hands = PlainHands(FeatureNet(alike()), teacher, 200, n=200)
    made = grafts(hands.student.net, teacher)
    for part in made.blocks:
        part.train()
    own = procedure(block_lr=1e-2)
    losses = [own._graft(hands, made, 0, 0, steps) for steps in (1, 80)]
    assert losses[1] < 0.2 * losses[0]
    for part in made.blocks:
        part.eval()
    whole = accuracy(lambda x: teacher(x).logits)
    assert whole > 0.9
    assert accuracy(lambda x: made.logits(x, 0, 0)) > whole - 0.15


@pytest.mark.parametrize("seed", [0, 1])
def test_merged_is_unmerged(
    seed: int, teacher: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain student gives what the chain with its adaptors gave."""
    torch.manual_seed(seed)
    student, x = FeatureNet(narrow()), digits()[0][:9]
    hands, made, seen = PlainHands(student, teacher, 20), list[Grafts](), list[Tensor]()

    class Watched(Grafts):
        def joints(self) -> dict[int, Tensor]:
            student.eval()
            seen.append(self.logits(x, 0, 2))
            made.append(self)
            return super().joints()

    monkeypatch.setattr("fskd.procedures.netgraft.Grafts", Watched)
    procedure().run(hands)
    assert [one is None for one in (*made[0].into, *made[0].out)] == [
        True, False, False, False, False, True,
    ]  # fmt: skip
    torch.testing.assert_close(student(x).logits, seen[0], rtol=1e-4, atol=1e-4)
    shapes = [[p.shape for p in net.parameters()] for net in (student.net, narrow())]
    assert shapes[0] == shapes[1]


def test_adaptors_only_where_widths_differ(teacher: FeatureNet) -> None:
    """Here, behind the first stage alone."""
    made = grafts(cnn([[6], [8], [20], [12]]), teacher)
    assert [None if one is None else tuple(one.weight.shape[:2]) for one in made.into] == [
        None, (8, 16), None,
    ]  # fmt: skip
    assert [None if one is None else tuple(one.weight.shape[:2]) for one in made.out] == [
        (16, 8), None, None,
    ]  # fmt: skip
    assert list(made.joints()) == [0]
    assert made.joints()[0].shape == (8, 8)


def test_merging_twin() -> None:
    """Padding and stride included: the adaptor first, or one convolution."""
    rng = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, 2, 1).double()
    x, matrix = (
        torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 3, 5, 5), (3, 3))
    )
    before = torch.stack([
        torch.stack([sum(matrix[d, c] * row[c] for c in range(3)) for d in range(3)]) for row in x
    ])  # fmt: skip
    expected = conv(before)
    merge([conv], matrix)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("name", "merges"),
    [
        ("cnn_tiny", [True]),
        ("resnet8", [True, True]),
        ("vgg8", [False, False, True]),  # pooled first, but for the last at this size
        ("wrn_16_1", [False] * 2),  # normalised first
    ],
)
def test_where_adaptors_can_be_merged(name: str, merges: list[bool]) -> None:
    size = (3, 16, 16)
    net = FeatureNet(build(name, 10, 3))
    before = copied(net)
    assert [can_merge(net, k, size) for k in range(len(merges))] == merges
    assert not moved(net, before)
    assert net.training


def test_a_plain_shortcut_takes_no_adaptor() -> None:
    """All stages as wide as each other, and none smaller: the sum would need the map itself."""
    net = ResNet(8, (8, 8, 8, 8), 10, 1)
    net.layer2[0].downsample = None
    net.layer2[0].conv1.stride = (1, 1)
    assert len(readers(FeatureNet(net), 0, SIZE)) == 1
    assert not can_merge(FeatureNet(net), 0, SIZE)


def test_refused_networks() -> None:
    def refuse(student: nn.Module, teacher: nn.Module, size: tuple[int, ...], word: str) -> None:
        with pytest.raises(SettingError, match=rf"^method\.netgraft: .*{word}"):
            procedure().check(FeatureNet(student), FeatureNet(teacher), size)  # type: ignore[arg-type]

    refuse(build("wrn_16_1", 10), build("wrn_16_2", 10), (3, 16, 16), "16 channels in stage 0")
    refuse(build("vgg8", 10), build("resnet50", 10), (3, 32, 32), "equal sizes of all stages")
    with pytest.raises(SettingError, match="one network as the teacher"):
        procedure().check(FeatureNet(alike()), nn.Linear(1, 1), SIZE)


@pytest.mark.parametrize("make", [alike, narrow])
def test_what_it_is_for(make: Any, teacher: FeatureNet) -> None:
    """A student from 50 digits without labels, far above chance, and plain."""
    student = make()
    optim = {"optim": {"lr": 1e-3}, "method": {"block_lr": 3e-3}}
    result = distill(
        teacher.net, student, "digits", method="netgraft", shots=5, steps=240, mean=0, std=1,
        settings=optim,
    )  # fmt: skip
    assert result.steps == 240
    assert result.student_rows == 240 * 64
    assert result.top1 > 0.4
    assert accuracy(student.eval()) == pytest.approx(result.top1, abs=1e-3)
