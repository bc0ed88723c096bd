"""A student cut from its teacher: equal where the rest did nothing, else the largest filters."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.calls import record
from fskd.models.catalog import build
from fskd.models.channels import Channels
from fskd.models.cut import check_cut, cut, kept_channels
from fskd.models.resnet_cifar import ResNet
from fskd.models.taps import FeatureNet
from fskd.models.vgg import VGG
from fskd.models.wrn import WideResNet
from fskd.teachers.ensemble import Ensemble

GREY, SMALL, COLOUR = (1, 28, 28), (1, 8, 8), (3, 16, 16)
Size = tuple[int, int, int]


def shaken(net: nn.Module, seed: int = 0) -> FeatureNet:
    """A network in eval mode whose norms do something."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.3)
    return FeatureNet(net).eval()


def named(name: str, size: Size, seed: int = 0) -> FeatureNet:
    torch.manual_seed(seed)
    return shaken(build(name, 10, size[0]), seed)


def logits(net: FeatureNet, size: Size) -> Tensor:
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return net(images).logits


def wide(kind: type[nn.Module], depth: object, *widths: object) -> FeatureNet:
    return shaken(kind(depth, *widths, num_classes=10, in_channels=3))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet14", COLOUR), ("resnet8x4", COLOUR), ("wrn_16_1", COLOUR), ("vgg8", COLOUR),
        ("cnn_small", SMALL), ("lenet5", GREY), ("mobilenetv2", (3, 32, 32)),
        ("shufflenetv2", (3, 32, 32)),
    ],
)  # fmt: skip
def test_an_equal_student_is_the_teacher(name: str, size: Size) -> None:
    teacher, student = named(name, size), named(name, size, seed=1)
    assert not torch.equal(logits(student, size), logits(teacher, size))
    cut(student, teacher, size)
    assert torch.equal(logits(student, size), logits(teacher, size))


def grown(student: FeatureNet, teacher: FeatureNet, size: Size, seed: int = 3) -> FeatureNet:
    """The teacher as the student, spread over random channels, among dead ones and identities."""
    rng = torch.Generator().manual_seed(seed)
    channels = Channels(student.net, record(student.net, size))
    large, rows = teacher.net.state_dict(), dict[int, Tensor]()
    for name, value in student.net.state_dict().items():
        for dim, group in enumerate(channels.layers.get(name, ())):
            n = large[name].shape[dim]
            order = torch.randperm(n, generator=rng)[: value.shape[dim]].sort().values
            rows.setdefault(group, order)
    for name, value in large.items():
        small = student.net.state_dict().get(name)
        if small is None:
            if name.endswith("weight") or "bias" in name or "mean" in name:
                value.zero_()  # a residual block that adds nothing
            continue
        groups = channels.layers.get(name, ())
        if "running_var" not in name:
            value.zero_()
        value[torch.meshgrid(*(rows[g] for g in groups), indexing="ij") if groups else ()] = small
    return teacher


@pytest.mark.parametrize(
    ("make", "large"),
    [
        (lambda: named("resnet8", COLOUR), lambda: named("resnet20", COLOUR)),
        (
            lambda: wide(ResNet, 8, (6, 6, 9, 12)),
            lambda: wide(ResNet, 20, (9, 9, 13, 17)),
        ),
        (lambda: wide(WideResNet, 10, 2), lambda: wide(WideResNet, 22, 3)),
        (lambda: named("resnet8x4", COLOUR), lambda: named("resnet32x4", COLOUR)),
    ],
)
def test_dead_channels_and_idle_blocks_are_left_out(
    make: Callable[[], FeatureNet], large: Callable[[], FeatureNet]
) -> None:
    source = make()
    teacher = grown(source, large(), COLOUR)
    student = shaken(copy.deepcopy(source.net), seed=5)
    with torch.no_grad():
        for value in student.parameters():
            value.normal_()
    cut(student, teacher, COLOUR)
    torch.testing.assert_close(logits(student, COLOUR), logits(teacher, COLOUR))
    for name, value in source.net.state_dict().items():
        assert torch.equal(student.net.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("small", "large", "size"),
    [("lenet5_half", "lenet5", GREY), ("cnn_tiny", "cnn_medium", SMALL)],
)
def test_narrower_plain_networks(small: str, large: str, size: Size) -> None:
    source = named(small, size)
    teacher = grown(source, named(large, size, 1), size)
    student = named(small, size, 2)
    cut(student, teacher, size)
    for name, value in source.net.state_dict().items():
        assert torch.equal(student.net.state_dict()[name], value), name
    if small == "lenet5_half":  # the other teacher's further convolution gives nothing but zeros
        torch.testing.assert_close(logits(student, size), logits(teacher, size))


def test_plain_networks_lose_the_later_convolutions_of_a_block() -> None:
    """Convolutions that are identities on maps that are not negative may go."""
    small, large = (shaken(VGG(depths, 10, 3)) for depths in ((1,) * 5, (2,) * 5))
    with torch.no_grad():
        for block in (getattr(large.net, f"block{i}") for i in range(5)):
            conv, norm = block[3], block[4]
            conv.weight.zero_()
            conv.weight[torch.arange(len(conv.weight)), torch.arange(len(conv.weight)), 1, 1] = 1
            conv.bias.zero_()
            norm.reset_parameters()
            norm.running_var.fill_(1 - norm.eps)
    cut(small, large, COLOUR)
    torch.testing.assert_close(logits(small, COLOUR), logits(large, COLOUR))


def test_channels_of_sums_are_chosen_together_by_all_that_write_them() -> None:
    """Loops: L1 norms of the student's layers that add to a map, largest first."""
    small, large = wide(ResNet, 8, (6, 6, 9, 12)), wide(ResNet, 14, (9, 9, 13, 17))
    kept = kept_channels(small, large, COLOUR)
    writers = {
        6: ["conv1", "layer1.0.conv2"],
        9: ["layer2.0.conv2", "layer2.0.downsample.0"],
        12: ["layer3.0.conv2", "layer3.0.downsample.0"],
    }
    modules = dict(large.net.named_modules())
    for n, names in writers.items():
        filters = [modules[name].weight.detach() for name in names]
        scores = [sum(float(w[i].abs().sum()) for w in filters) for i in range(len(filters[0]))]
        best = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:n])
        for name in names:
            assert kept[f"{name}.weight"].tolist() == best
    assert kept["fc.weight"].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("small", "large", "why"),
    [
        ("resnet20", "vgg8", "the whole is a ResNet, the teacher's a VGG"),
        ("resnet20", "resnet14", "the teacher has no 'layer1.2'"),
        ("resnet8x4", "resnet14", "the teacher has no 'layer1.0.downsample'"),
        (
            "wrn_16_1",
            "wrn_16_2",
            "the teacher's 'block1.layer.0' has convShortcut, the student's not",
        ),
        ("cnn_medium", "cnn_tiny", "the teacher has no 'stages.1.1'"),
        ("timm:test_resnet", "resnet14", "the teacher's a ResNet"),
    ],
)
def test_others_are_refused_in_one_line(small: str, large: str, why: str) -> None:
    with torch.device("cpu"):
        student, teacher = (FeatureNet(build(name, 10, 3)) for name in (small, large))
    with pytest.raises(SettingError, match="no part of the teacher") as error:
        check_cut(student, teacher, (3, 32, 32))
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_wider_students_and_several_teachers_are_refused() -> None:
    narrow, broad = wide(ResNet, 8, (6, 6, 9, 12)), wide(ResNet, 14, (9, 9, 13, 17))
    with pytest.raises(SettingError, match=r"conv1\.weight is 9x3x3x3, the teacher's 6x3x3x3"):
        check_cut(wide(ResNet, 8, (9, 9, 13, 17)), wide(ResNet, 14, (6, 6, 9, 12)), COLOUR)
    with pytest.raises(SettingError, match="it is not one network"):
        check_cut(narrow, Ensemble([broad, broad]), COLOUR)
    fewer, all_ten = FeatureNet(build("resnet8", 7, 3)), FeatureNet(build("resnet14", 10, 3))
    with pytest.raises(SettingError, match=r"fc\.weight is 7x64, the teacher's 10x64"):
        check_cut(fewer, all_ten, COLOUR)


def test_a_check_needs_no_weights_and_leaves_no_trace() -> None:
    student, teacher = named("resnet8", COLOUR), named("resnet14", COLOUR)
    states = [copy.deepcopy(net.state_dict()) for net in (student, teacher)]
    student.train()
    check_cut(student, teacher, COLOUR)
    assert student.net.training
    for net, state in zip((student, teacher), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_networks_of_a_library() -> None:
    """Names and calls are all that counts."""
    small, large = (
        FeatureNet(build(f"torchvision:{name}", 10, 3)).eval() for name in ("resnet18", "resnet34")
    )
    cut(small, large, (3, 64, 64))
    ours, theirs = small.net.state_dict(), large.net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
