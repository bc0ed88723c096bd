"""A wrong teacher is named by its cause, and a sound one is not."""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fskd.data.datasets.base import channel_stats, load
from fskd.models.catalog import build
from fskd.teachers import doubts as module
from fskd.teachers.class_orders import fitted, told_orders
from fskd.teachers.doubts import Asked, accuracy, doubts, not_finite
from fskd.teachers.normalisations import Normalisation, others, usual

OWN: Normalisation = ((0.3,), (0.4,))
RAW: Normalisation = ((0.0,), (1.0,))


class Data(NamedTuple):
    images: Tensor
    targets: Tensor
    classes: list[str]

    @property
    def own(self) -> Normalisation:
        return channel_stats(self.images)


@lru_cache
def data(name: str) -> Data:
    """The digits, all or two of them, or made images: blurred noise per class, and more noise."""
    if name == "made grey":
        return made(10, (1, 20, 20), 800)
    if name == "made colour":
        return made(20, (3, 12, 12), 1000)
    digits = load("digits").train
    if name == "digits":
        return Data(digits.images, digits.targets, list(digits.classes))
    pair = (digits.targets == 3) | (digits.targets == 8)
    return Data(digits.images[pair], (digits.targets[pair] == 8).long(), ["three", "eight"])


def made(num_classes: int, size: tuple[int, int, int], n: int) -> Data:
    rng = torch.Generator().manual_seed(5)
    shapes = F.avg_pool2d(torch.rand(num_classes, *size, generator=rng), 3, 1, 1) * 2 - 0.5
    targets = torch.arange(n) % num_classes
    noisy = shapes[targets] + 0.25 * torch.randn(n, *size, generator=rng)
    pixels = (noisy.clamp(0, 1) * 255).to(torch.uint8)
    return Data(pixels, targets, [f"class {number}" for number in range(num_classes)])


def shown(images: Tensor, how: Normalisation) -> Tensor:
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in how)
    return (images / 255 - mean) / std


@lru_cache
def trained(
    name: str, net: str, steps: int, seed: int = 0, how: Normalisation | None = None
) -> nn.Module:
    images, targets, classes = data(name)
    torch.manual_seed(seed)
    teacher = build(net, len(classes), images.shape[1])
    optimiser = torch.optim.SGD(teacher.parameters(), 0.02, momentum=0.9)
    inputs = shown(images, how or data(name).own)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,))
        optimiser.zero_grad()
        F.cross_entropy(teacher(inputs[rows]), targets[rows]).backward()
        optimiser.step()
    return teacher.eval()


@torch.no_grad()
def said(
    teacher: nn.Module,
    name: str,
    subset: Tensor | None = None,
    own: Normalisation | None = None,
    recorded: float | None = None,
) -> list[str]:
    """The doubts about a teacher that is asked for some images in mixed order."""
    images, targets, classes = data(name)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    rows = rows if subset is None else rows[torch.isin(rows, subset)]
    own = own or data(name).own

    @torch.no_grad()
    def ask(mean: tuple[float, ...], std: tuple[float, ...], n: int = 256) -> Tensor:
        return teacher(shown(images[rows[:n]], (mean, std)))

    asked = Asked(ask(*own, n=len(rows)), targets[rows])
    more = {"its images": data(name).own}
    return doubts(asked, classes, own=own, recorded=recorded, again=ask, known=more)


class Moved(nn.Module):
    """A teacher whose output j stands for class order[j]."""

    def __init__(self, net: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.net, self.order = net, torch.tensor(order)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, self.order]


ORDER = [3, 0, 1, 2, 4, 6, 5, 7, 9, 8]


@pytest.mark.parametrize("net", ["cnn_tiny", "cnn_small"])
def test_permuted_teacher_is_named_with_its_moves(net: str) -> None:
    found = said(Moved(trained("digits", net, 150), ORDER), "digits")
    assert len(found) == 1
    assert found[0].startswith("its classes are in another order: ")
    assert found[0].endswith("after moving 0->3, 1->0, 2->1, 3->2 and 4 more")


def test_swapped_pair_is_named() -> None:
    (found,) = said(Moved(trained("pair", "cnn_tiny", 100), [1, 0]), "pair")
    assert "another order:" in found
    assert found.endswith("after moving three->eight, eight->three")


GREY = [RAW, data("digits").own, ((0.5,), (0.5,)), ((0.0,), (1 / 255,))]


@pytest.mark.parametrize("right", GREY, ids=["raw", "own", "half", "bytes"])
def test_right_normalisation_is_named(right: Normalisation) -> None:
    teacher = trained("digits", "cnn_tiny", 300, how=right)
    wrong = data("digits").own if right != data("digits").own else RAW
    if right == ((0.5,), (0.5,)):  # which is near the data's own
        wrong = RAW
    assert said(teacher, "digits", own=right) == []
    (found,) = said(teacher, "digits", own=wrong)
    assert f"with mean [{right[0][0]:.4g}] and std [{right[1][0]:.4g}]" in found
    assert found.endswith("set data.mean and data.std")


def test_colour_normalisation_is_named() -> None:
    teacher = trained("made colour", "cnn_tiny", 150, how=usual(3)["pixels 0 to 255"])
    assert "with mean [0, 0, 0] and std [0.003922, " in said(teacher, "made colour")[0]


@pytest.mark.parametrize("name", ["digits", "pair", "made grey"])
def test_softmax_is_named(name: str) -> None:
    teacher = trained(name, "cnn_tiny", 150)
    assert said(nn.Sequential(teacher, nn.Softmax(1)), name) == [
        "its outputs are probabilities (rows sum to one), not logits: drop the softmax"
    ]
    assert said(nn.Sequential(teacher, nn.LogSoftmax(1)), name) == []


@pytest.mark.parametrize("net", ["cnn_tiny", "cnn_small", "resnet8"])
@pytest.mark.parametrize("name", ["digits", "made grey", "made colour"])
def test_untrained_teacher_is_near_chance(name: str, net: str) -> None:
    (found,) = said(trained(name, net, 0), name)
    assert "near chance" in found
    assert "no other order of the classes or usual normalisation explains it" in found


def test_damaged_teacher_is_named() -> None:
    teacher = build("cnn_tiny", 10, 1).eval()
    assert not_finite(teacher) is None
    next(iter(teacher.buffers()))[1] = float("inf")
    assert not_finite(teacher) == (
        "its stages.0.0.1.running_mean is NaN or infinite in 1 of 8 places: load other weights"
    )
    n = len(data("digits").targets)
    assert "near chance" in said(teacher, "digits")[0]  # a ReLU makes 0 of minus infinity
    next(iter(teacher.parameters())).data[1] = torch.nan
    (found,) = said(teacher, "digits")
    assert found == f"its outputs are NaN or infinite for {n} of {n} images"


HEALTHY = [
    ("digits", "cnn_tiny", 300, 0, "all"),
    ("digits", "cnn_tiny", 300, 0, "one each"),
    ("digits", "cnn_tiny", 300, 0, "tail"),
    ("digits", "cnn_tiny", 300, 0, "50"),
    ("digits", "cnn_small", 100, 1, "all"),
    ("digits", "cnn_small", 100, 1, "one each"),
    ("digits", "cnn_small", 15, 1, "all"),  # less than an epoch, and other batch norms suit it
    ("digits", "cnn_small", 15, 2, "tail"),
    ("digits", "cnn_small", 19, 3, "200"),
    ("digits", "cnn_tiny", 19, 4, "all"),
    ("digits", "cnn_tiny", 19, 5, "one each"),
    ("digits", "cnn_tiny", 19, 6, "tail"),
    ("digits", "resnet8", 60, 0, "all"),
    ("pair", "cnn_tiny", 100, 0, "all"),
    ("pair", "cnn_tiny", 100, 0, "one each"),
    ("pair", "cnn_tiny", 100, 0, "tail"),
    ("pair", "cnn_small", 15, 1, "20"),
    ("made grey", "cnn_tiny", 100, 0, "all"),
    ("made grey", "cnn_tiny", 12, 1, "tail"),
    ("made colour", "cnn_tiny", 100, 0, "all"),
    ("made colour", "cnn_small", 16, 0, "300"),
    ("made colour", "cnn_tiny", 100, 0, "one each"),
]


def subset_of(targets: Tensor, kind: str) -> Tensor:
    """Positions: all, so many, one of each class, or ever fewer of the later classes."""
    num_classes = int(targets.max()) + 1
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(2))
    if kind.isdecimal():
        return order[: int(kind)]
    if kind == "all":
        return order
    most = int(targets.bincount().min())
    sizes = [
        1 if kind == "one each" else max(1, int(most * 0.05 ** (k / (num_classes - 1))))
        for k in range(num_classes)
    ]
    return torch.cat([order[targets[order] == k][: sizes[k]] for k in range(num_classes)])


@pytest.mark.parametrize(("name", "net", "steps", "seed", "kind"), HEALTHY)
def test_sound_teacher_raises_no_doubt(
    name: str, net: str, steps: int, seed: int, kind: str
) -> None:
    teacher, (images, targets, _) = trained(name, net, steps, seed), data(name)
    with torch.no_grad():
        recorded = accuracy(Asked(teacher(shown(images, data(name).own)), targets))
    subset = subset_of(targets, kind)
    assert said(teacher, name, subset) == []
    assert said(teacher, name, subset, recorded=recorded) == []


def answers_of(targets: Sequence[int], answers: Sequence[int], num_classes: int) -> Asked:
    logits = 5 * F.one_hot(torch.as_tensor(answers), num_classes).float()
    return Asked(logits, torch.as_tensor(targets))


def names(num_classes: int) -> list[str]:
    return [chr(97 + number) for number in range(num_classes)]


def told(asked: Asked, **more: float | None) -> list[str]:
    return doubts(asked, names(asked.logits.shape[1]), own=OWN, **more)


@pytest.mark.parametrize(
    ("num_classes", "n"), [(2, 2), (2, 40), (2, 500), (5, 60), (10, 10), (10, 300), (100, 600)]
)
def test_uneven_confusion_of_a_weak_teacher_is_no_order(num_classes: int, n: int) -> None:
    # Of two classes 60 % is so near to chance that some draws are.
    rng, right = np.random.default_rng(n), 0.75 if num_classes == 2 else 0.6
    for _ in range(200):
        confusion = right * np.eye(num_classes)
        for row in range(num_classes):
            others = np.arange(num_classes) != row
            confusion[row, others] = (1 - right) * rng.dirichlet(np.full(num_classes - 1, 0.3))
        targets = np.arange(n) % num_classes
        drawn = [rng.choice(num_classes, p=confusion[target]) for target in targets]
        assert told(answers_of(targets, drawn, num_classes), recorded=right) == []


def test_answers_by_chance_are_no_order() -> None:
    rng = np.random.default_rng(0)
    for n in (30, 300, 3000):
        targets = np.arange(n) % 10
        found = [told(answers_of(targets, rng.integers(0, 10, n), 10)) for _ in range(50)]
        assert all("near chance" in one for (one,) in filter(None, found))
        assert sum(map(bool, found)) >= 45


@pytest.mark.parametrize(("swapped", "named"), [(90, False), (110, True)])
def test_a_gain_below_a_tenth_is_no_order(swapped: int, named: bool) -> None:
    targets = [0] * (swapped // 2) + [1] * (swapped // 2) + [2] * 400 + [3] * (600 - swapped)
    answers = [{0: 1, 1: 0}.get(target, target) for target in targets]
    assert bool(told(answers_of(targets, answers, 4))) is named


@pytest.mark.parametrize(("lost", "named"), [(0.55, False), (0.45, True)])
def test_an_order_must_take_half_of_the_errors(lost: float, named: bool) -> None:
    # 60 % of the images are of two swapped classes; of those, some fit no order at all.
    targets, answers = [], []
    for number in range(1000):
        target = number % 10
        stray = (number // 10) % 100 < 100 * lost
        targets.append(target)
        swapped = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}.get(target, target)
        answers.append(6 + number // 10 % 4 if stray and target < 6 else swapped)
    found = told(answers_of(targets, answers, 10))
    assert any("another order" in one for one in found) is named


@pytest.mark.parametrize(("share", "named"), [(0.70, False), (0.80, True)])
def test_an_order_must_leave_little_to_chance(share: float, named: bool) -> None:
    targets = [0, 1] * 500
    answers = [
        1 - target if place < 1000 * share else target for place, target in enumerate(targets)
    ]
    found = told(answers_of(targets, answers, 2))
    assert any("another order" in one for one in found) is named


@pytest.mark.parametrize(("n", "named"), [(12, False), (14, True)])
def test_an_order_must_be_certain(n: int, named: bool) -> None:
    targets = [0, 1] * (n // 2)
    assert bool(told(answers_of(targets, [1 - one for one in targets], 2))) is named


def test_an_order_needs_no_more_than_one_image_of_a_class_if_it_is_known() -> None:
    classes = [str(number) for number in range(100)]
    by_name = sorted(range(100), key=str)
    answers = [by_name.index(target) for target in range(100)]
    asked = answers_of(range(100), answers, 100)
    (found,) = doubts(asked, classes, own=OWN)
    assert ", as sorted by name, which data.class_order=sorted gives: 100.0 %" in found
    assert found.endswith("after moving 2->10, 3->11, 4->12, 5->13 and 84 more")
    moved = np.roll(np.arange(100), 7)
    (found,) = doubts(answers_of(range(100), moved, 100), classes, own=OWN)
    assert "near chance" in found  # of which no more can be said
    assert "order" not in found


@pytest.mark.parametrize(("num_classes", "named"), [(14, False), (15, True)])
def test_each_order_that_is_tried_may_fit_by_luck(num_classes: int, named: bool) -> None:
    moved = np.roll(np.arange(num_classes), 1)
    found = told(answers_of(range(num_classes), moved, num_classes))
    assert any("each one place" in one for one in found) is named


@pytest.mark.parametrize(
    ("answers", "targets"), [([1, 2], [2, 2]), ([1, 0, 2], [1, 2, 2]), ([0, 0], [0, 1])]
)
def test_of_orders_that_fit_alike_the_usual_one_is_taken(
    answers: list[int], targets: list[int]
) -> None:
    assert fitted(np.array(answers), np.array(targets), 3).tolist() == [0, 1, 2]


def test_known_orders() -> None:
    assert set(told_orders(["10", "2", "1"])) == {
        ", as sorted by name, which data.class_order=sorted gives",
        ", as sorted by number",
        ", each one place on",
        ", each one place back",
    }
    assert told_orders(["10", "2", "1"])[", as sorted by number"].tolist() == [2, 1, 0]
    assert len(told_orders(["a", "b", "c"])) == 2
    assert told_orders(["only"]) == {}


@pytest.mark.parametrize("step", [1, -1])
def test_labels_that_begin_elsewhere_are_named(step: int) -> None:
    targets = np.arange(60) % 6
    (found,) = told(answers_of(targets, (targets + step) % 6, 6))
    assert f"each one place {'back' if step == 1 else 'on'}" in found


def test_too_many_classes_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = np.arange(300) % 10
    asked = answers_of(targets, np.array(ORDER)[targets], 10)
    assert "another order" in told(asked)[0]
    monkeypatch.setattr(module, "LARGEST_FIT", 9)
    assert not any("another order" in one for one in told(asked))


def part_right(share: float, n: int = 1000) -> Asked:
    """Answers of ten classes of which a share is right; the errors are spread over the others."""
    targets = np.arange(n) // 10 % 10
    wrong = (targets + 1 + np.arange(n) % 9) % 10
    spread = np.random.default_rng(0).permutation(n) < round(share * n)
    return answers_of(targets, np.where(spread, targets, wrong), 10)


@pytest.mark.parametrize(
    ("share", "recorded", "named"),
    [(0.88, None, False), (0.92, None, True), (0.79, 0.99, False), (0.85, 0.99, True)],
)
def test_a_normalisation_must_take_most_errors(
    share: float, recorded: float | None, named: bool
) -> None:
    def again(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return part_right(share if mean == (0.5,) else 0.5).logits

    found = doubts(part_right(0.6), names(10), own=OWN, again=again, recorded=recorded)
    assert any("with mean [0.5] and std [0.5] (pixels -1 to 1)" in one for one in found) is named
    assert any("was recorded" in one for one in found) is (recorded is not None and not named)


def test_good_teacher_is_not_asked_again() -> None:
    calls: list[object] = []

    def again(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        calls.append(mean)
        return part_right(0.5, n=300).logits

    assert doubts(part_right(0.91), names(10), own=OWN, again=again) == []
    assert calls == []
    assert doubts(part_right(0.89), names(10), own=OWN, again=again) == []
    assert len(calls) == len(others(OWN, {}))


def test_answers_that_are_not_finite_are_not_right() -> None:
    def again(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        right = part_right(1.0).logits
        return torch.where(right > 0, torch.nan, right)

    assert doubts(part_right(0.6), names(10), own=OWN, again=again) == []


@pytest.mark.parametrize(("share", "named"), [(0.14, True), (0.16, False)])
def test_near_chance(share: float, named: bool) -> None:
    found = told(part_right(share))
    assert bool(found) is named
    assert all("on 14.0 % of 1000 images, near chance (10.0 %)" in one for one in found)


@pytest.mark.parametrize(("n", "named"), [(20, False), (30, True)])
def test_near_chance_needs_enough_images(n: int, named: bool) -> None:
    found = told(answers_of(np.arange(n) % 10, [7] * n, 10))
    assert bool(found) is named
    assert all("answers 'h' for 100.0 % of them" in one for one in found)


@pytest.mark.parametrize(("share", "named"), [(0.88, True), (0.90, False)])
def test_far_below_the_record(share: float, named: bool) -> None:
    found = told(part_right(share), recorded=0.99)
    assert bool(found) is named
    assert all("but 99.0 % was recorded for it" in one for one in found)


@pytest.mark.parametrize(("right", "named"), [(6, True), (7, False)])
def test_a_record_is_compared_with_the_error_of_few_images(right: int, named: bool) -> None:
    answers = [*range(right), *((place + 1) % 10 for place in range(right, 10))]
    assert bool(told(answers_of(range(10), answers, 10), recorded=1.0)) is named


@pytest.mark.parametrize(("total", "named"), [(1.0005, True), (1.002, False), (0.998, False)])
def test_probabilities_sum_to_one(total: float, named: bool) -> None:
    asked = part_right(1.0)
    probs = Asked(asked.logits.softmax(1) * total, asked.targets)
    assert bool(told(probs)) is named


def test_what_sums_to_one_but_is_negative_is_no_probability() -> None:
    logits = torch.tensor([[3.0, -2.0], [-2.0, 3.0]])
    assert told(Asked(logits, torch.tensor([0, 1]))) == []
    assert len(told(Asked(logits.softmax(1), torch.tensor([0, 1])))) == 1


def test_some_outputs_that_are_not_finite() -> None:
    asked = part_right(1.0)
    asked.logits[:12, 3] = torch.nan
    assert told(asked) == ["its outputs are NaN or infinite for 12 of 1000 images"]


def test_no_images_and_other_outputs() -> None:
    nothing = Asked(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert told(nothing) == []
    assert np.isnan(accuracy(nothing))
    assert accuracy(part_right(0.6)) == pytest.approx(0.6)
    asked = part_right(1.0)
    assert doubts(asked, ["a", "b"], own=OWN) == ["it has 10 outputs for 2 classes"]


def test_normalisations_to_try() -> None:
    assert set(usual(2)) == {"pixels 0 to 1", "pixels -1 to 1", "pixels 0 to 255"}
    for channels in (1, 2, 3):
        for mean, std in usual(channels).values():
            assert len(mean) == len(std) == channels
    tried = others(((0.1307,), (0.3081,)), {"same": ((0.13066,), (0.30811,)), "new": OWN})
    assert "MNIST" not in tried
    assert "same" not in tried
    assert next(iter(tried)) == "new"


def test_a_thousand_classes_take_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(4096) % 1000
    moved = rng.permutation(1000)[targets]
    asked = answers_of(targets, np.where(rng.random(4096) < 0.8, moved, targets), 1000)
    began = time.perf_counter()
    (found,) = doubts(asked, [str(number) for number in range(1000)], own=OWN)
    assert time.perf_counter() - began < 1
    assert "another order" in found


def test_one_class_is_no_fault_of_the_teacher() -> None:
    """Whatever it answers is right, and at chance."""
    targets = torch.zeros(200, dtype=torch.int64)
    asked = Asked(torch.randn(200, 3).index_fill(1, torch.tensor([0]), 9.0), targets)
    assert doubts(asked, ["a", "b", "c"], own=((0.5,), (0.5,))) == []
    assert doubts(Asked(torch.randn(200, 1), targets), ["a"], own=((0.5,), (0.5,))) == []
