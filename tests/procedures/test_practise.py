"""PRACTISE: gaps and adaptors, blocks copied, the dead block first, and what it is for."""

import copy
from typing import Any

import pytest
import torch
from operating import PlainHands, accuracy, copied, digits, moved, trained
from recorded import maps
from torch import nn

from fskd import distill
from fskd.errors import SettingError
from fskd.models.blocks import kept_state, spare, stacks, surplus, with_gap
from fskd.models.catalog import build
from fskd.models.resnet_cifar import ResNet
from fskd.models.taps import FeatureNet
from fskd.models.wrn import WideResNet
from fskd.procedures.mimic import mimic_loss
from fskd.procedures.practise import Practise, chosen
from fskd.types import Outputs

WIDTHS = (8, 8, 10, 12)


def resnet(depth: int) -> ResNet:
    torch.manual_seed(depth)
    return ResNet(depth, WIDTHS, 10, 1)


def wide(depth: int, factor: int = 1) -> WideResNet:
    torch.manual_seed(depth)
    return WideResNet(depth, factor, 10, 1)


@pytest.fixture(scope="module")
def teacher() -> FeatureNet:
    return trained(resnet(20))


@pytest.fixture(scope="module")
def dead(teacher: FeatureNet) -> FeatureNet:
    """Two of its blocks do nothing."""
    net = copy.deepcopy(teacher)
    for name in ("layer1.1", "layer2.2"):
        nn.init.zeros_(net.net.get_parameter(f"{name}.bn2.weight"))
        nn.init.zeros_(net.net.get_parameter(f"{name}.bn2.bias"))
    return net


def procedure(**settings: Any) -> Practise:
    return Practise(Practise.Settings(**settings))


def test_slow_twin() -> None:
    """The mean of squares of what is positive of the last maps; nothing for the teacher."""
    ours = [maps(2, 3, 2, 2), maps(2, 4, 3, 2).requires_grad_(True)]
    theirs = [maps(2, 5, 2, 2), maps(2, 4, 3, 2, seed=7).requires_grad_(True)]
    pairs = zip(ours[-1].flatten().tolist(), theirs[-1].flatten().tolist(), strict=True)
    squares = [(max(s, 0.0) - max(t, 0.0)) ** 2 for s, t in pairs]
    loss = mimic_loss(Outputs(pre=tuple(ours)), Outputs(pre=tuple(theirs)))
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    loss.backward()
    assert ours[-1].grad is not None
    assert theirs[-1].grad is None


@pytest.mark.parametrize("make", [resnet, lambda depth: wide(depth - 2)])
def test_the_map_is_what_is_pooled(make: Any) -> None:
    """Also in a wide ResNet, whose stages end before a norm."""
    net = FeatureNet(make(14)).eval()
    out = net(digits()[0][:4], frozenset({"pre", "embedding"}))
    torch.testing.assert_close(out.pre[-1].relu().mean((2, 3)), out.embedding)


def test_chosen_is_the_lowest_of_each_stack() -> None:
    """Against every choice: no other of the same size has a lower sum."""
    from itertools import combinations

    rng = torch.Generator().manual_seed(3)
    free = {"a": [0, 1, 2, 3, 4], "b": [1, 2], "c": [1, 2, 3]}
    n = {"a": 3, "b": 2, "c": 0}
    scores = {("a", i): float(torch.rand((), generator=rng)) for i in free["a"]}
    found = chosen(scores, free, n)
    best = min(combinations(free["a"], 3), key=lambda some: sum(scores["a", i] for i in some))
    assert found == {"a": sorted(best), "b": [1, 2], "c": []}


@pytest.mark.parametrize(
    ("big", "small", "missing"),
    [
        (resnet(26), resnet(14), {"layer1": [0, 2], "layer2": [1, 3], "layer3": [2, 3]}),
        (wide(22), wide(16), {f"block{k}.layer": [k - 1 or 2] for k in (1, 2, 3)}),
    ],
)
def test_blocks_are_copied(big: Any, small: Any, missing: dict[str, list[int]]) -> None:
    """What is left, run block by block, gives the logits of the smaller network with its state."""
    for module in big.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
    small.load_state_dict(kept_state(big, missing))
    x = digits()[0][:5]
    expected = small.eval()(x)
    left = copy.deepcopy(big).eval()
    for path, stack in stacks(left).items():
        for i in reversed(missing[path]):
            del stack[i]
    assert torch.equal(left(x), expected)
    assert not torch.equal(big.eval()(x), expected)


@pytest.mark.parametrize(
    ("make", "path", "index", "writers", "readers"),
    [
        (resnet, "layer2", 1, ["layer2.0.downsample.0", "layer2.0.conv2"],
         ["layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"]),
        (resnet, "layer2", 2, ["layer2.0.downsample.0", "layer2.0.conv2", "layer2.1.conv2"],
         ["layer3.0.conv1", "layer3.0.downsample.0"]),
        (resnet, "layer1", 0, ["conv1"],
         ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]),
        (resnet, "layer3", 2, ["layer3.0.downsample.0", "layer3.0.conv2", "layer3.1.conv2"], []),
        (wide, "block2.layer", 1, ["block2.layer.0.convShortcut", "block2.layer.0.conv2"],
         ["block2.layer.1.conv1", "block3.layer.0.conv1", "block3.layer.0.convShortcut"]),
    ],
)  # fmt: skip
def test_adaptors_stand_around_the_gap(
    make: Any, path: str, index: int, writers: list[str], readers: list[str]
) -> None:
    """They begin as identities, so that the network is the one without the block."""
    net = FeatureNet(make(20 if make is resnet else 22))
    before = copied(net)
    twin, weights = with_gap(net, path, index)
    made = {n: m for n, m in twin.net.named_modules() if isinstance(m, nn.Sequential)}
    pairs = {n: [type(x) for x in m] == [nn.Conv2d, nn.Conv2d] for n, m in made.items()}
    wrapped = {name for name, both in pairs.items() if both}
    behind = {name for name in wrapped if made[name][1].weight in set(weights)}
    assert behind == set(writers)
    assert wrapped - behind == set(readers)
    assert len(weights) == len(wrapped)
    assert {p for p in twin.parameters() if p.requires_grad} == set(weights)
    plain = copy.deepcopy(net).eval()
    del stacks(plain.net)[path][index]
    x = digits()[0][:3]
    torch.testing.assert_close(twin(x).logits, plain(x).logits)
    assert not any(module.training for module in twin.modules())
    assert not moved(net, before)


def test_recoverability_falls_with_training(teacher: FeatureNet) -> None:
    """Only adaptors learn; the teacher and its running statistics stay as they were."""
    before = copied(teacher)
    scores = []
    for steps in (0, 40):
        hands = PlainHands(FeatureNet(resnet(14)), teacher, 0)
        scores.append(procedure()._score(hands, hands.teacher.net, "layer2", 1, steps))
        ((_, parameters, lr),) = hands.descents
        assert lr is None
        assert all(p.shape[2:] == (1, 1) for p in parameters)
    assert 0 < scores[1] < 0.7 * scores[0]
    assert not moved(teacher, before)


def test_recoverability_is_the_mean_over_the_unmoved_images(teacher: FeatureNet) -> None:
    hands = PlainHands(FeatureNet(resnet(14)), teacher, 0)
    found = procedure()._score(hands, hands.teacher.net, "layer3", 2, 0)
    plain = copy.deepcopy(teacher)
    del stacks(plain.net)["layer3"][2]
    with torch.no_grad():
        pre = frozenset({"pre"})
        maps = [net(hands.rows, pre).pre[-1].relu().double() for net in (plain, teacher)]
    assert found == pytest.approx(float((maps[0] - maps[1]).square().mean()), rel=1e-5)


def test_dead_blocks_go_first(dead: FeatureNet) -> None:
    """Then the student is the teacher, before its fine-tuning and after it."""
    student = FeatureNet(resnet(14))
    hands = PlainHands(student, dead, 26)
    procedure(ranking=0.5).run(hands)
    found = hands.notes["recoverability"]
    # Adam's first steps leave the exact identity; what is dead is still far below all others.
    ranked = sorted(found, key=found.__getitem__)
    assert set(found) == {"layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1",
                          "layer3.2"}  # fmt: skip
    assert hands.notes["ranking_steps"] == 7  # a half of 26, divided by seven
    assert [steps for steps, *_ in hands.descents] == [1] * 7
    assert ranked.index("layer1.1") < min(ranked.index("layer1.0"), ranked.index("layer1.2"))
    assert ranked.index("layer2.2") < ranked.index("layer2.1")
    assert {"layer1.1", "layer2.2"} < set(hands.notes["dropped"])
    assert len(hands.notes["dropped"]) == 3


def test_a_dead_block_is_no_loss(dead: FeatureNet) -> None:
    hands = PlainHands(FeatureNet(resnet(14)), dead, 0)
    assert procedure()._score(hands, dead, "layer1", 1, 0) == 0
    assert procedure()._score(hands, dead, "layer1", 2, 0) > 0


def test_no_choice_no_ranking(teacher: FeatureNet) -> None:
    """Of stages 2 and 3 of the smallest ResNet every block goes that can; all updates are left."""
    student = FeatureNet(resnet(8))
    hands = PlainHands(student, teacher, 30)
    procedure().run(hands)
    assert {name.partition(".")[0] for name in hands.notes["recoverability"]} == {"layer1"}
    assert hands.notes["dropped"][-4:] == ["layer2.1", "layer2.2", "layer3.1", "layer3.2"]


def test_what_it_is_for(teacher: FeatureNet) -> None:
    """On 50 digits, better than other blocks taken out and no training; the head is kept."""
    student = resnet(14)
    result = distill(
        teacher.net, student, "digits", method="practise", shots=5, steps=30, mean=0, std=1,
    )  # fmt: skip
    dropped = result.procedure["dropped"]
    assert result.steps == 30
    assert result.procedure["ranking_steps"] == 14
    assert result.student_rows == 30 * 64
    found = result.procedure["recoverability"]
    worst = {p: [max(spare(s), key=lambda i, p=p: found[f"{p}.{i}"])]
             for p, s in stacks(teacher.net).items()}  # fmt: skip
    assert [f"{p}.{i[0]}" for p, i in worst.items()] != dropped
    other = resnet(14)
    other.load_state_dict(kept_state(teacher.net, worst))
    assert result.top1 > accuracy(other.eval()) + 0.05
    assert torch.equal(student.fc.weight, teacher.net.fc.weight)
    assert not torch.equal(student.conv1.weight, teacher.net.conv1.weight)


def test_fine_tuning_is_what_makes_it_better(teacher: FeatureNet) -> None:
    """The student that the choice leaves, before and after the loop."""
    student = FeatureNet(resnet(14))
    hands = PlainHands(student, teacher, 30)
    procedure().run(hands)
    before = accuracy(lambda x: student.eval()(x).logits)
    result = distill(
        teacher.net, resnet(14), "digits", method="practise", shots=5, steps=60, mean=0, std=1
    )
    assert result.top1 > before


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("resnet8", "resnet8"),  # nothing to take out
        ("resnet20", "resnet14"),
        ("resnet8x4", "resnet20"),  # wider
        ("wrn_16_2", "wrn_40_1"),
        ("wrn_16_1", "resnet20"),
        ("cnn_tiny", "cnn_small"),
        ("vgg8", "vgg13"),
    ],
)
def test_other_pairs_are_refused(student: str, teacher: str) -> None:
    nets = [FeatureNet(build(name, 10, 3)) for name in (student, teacher)]
    with pytest.raises(SettingError, match=r"^method\.practise: a student with .* fewer residual"):
        procedure().check(*nets, (3, 32, 32))


@pytest.mark.parametrize(
    ("student", "teacher", "more"),
    [
        ("resnet8", "resnet14", [1, 1, 1]),
        ("resnet20", "resnet56", [6, 6, 6]),
        ("wrn_16_2", "wrn_40_2", [4, 4, 4]),
    ],
)
def test_pairs_of_the_zoo(student: str, teacher: str, more: list[int]) -> None:
    nets = [build(name, 10, 3) for name in (student, teacher)]
    assert list((surplus(*nets) or {}).values()) == more
    procedure().check(*map(FeatureNet, nets), (3, 32, 32))


def test_blocks_that_change_the_size_stay() -> None:
    assert [spare(stack) for stack in stacks(resnet(20)).values()] == [[0, 1, 2], [1, 2], [1, 2]]
    assert [spare(stack) for stack in stacks(wide(22, 2)).values()] == [[1, 2]] * 3


def test_the_command_says_why(command: Any) -> None:
    """Before any training."""
    code, printed, said = command("--method", "practise", "--shots", "5", "--steps", "20")
    assert code == 2
    assert "method.practise: a student with no residual blocks" in said
    assert "steps" not in printed + said
