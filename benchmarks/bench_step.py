"""A whole distillation step with the fused terms and with the plain ones, taking turns.

    python benchmarks/bench_step.py

prints the ratio of the step times (above 1: the fused terms are faster) for the networks of the
embedded default and of a CIFAR pair, also with as many classes as ImageNet-21k. The loss is a small
part of a step with few classes, so expect ratios near 1 there.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fskd.losses.fused.measuring import interleaved
from fskd.losses.fused.terms import Terms, kd_terms
from fskd.losses.targets import cross_entropy, kl_divergence
from fskd.models.catalog import build

PAIRS = (
    ("cnn_small", "cnn_tiny", 1, 8, 10),
    ("resnet32", "resnet8", 3, 32, 100),
    ("resnet32", "resnet8", 3, 32, 21_841),
)
WEIGHTS = 0.1, 0.9, 1.0


def plain_terms(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Terms:
    """The definitions, one after another."""
    n = len(targets)
    return Terms(
        cross_entropy(student[:n], targets),
        kl_divergence(student[:n], teacher[:n], temperature),
        kl_divergence(student[n:], teacher[n:], temperature),
    )


def make_step(
    teacher: nn.Module, student: nn.Module, inputs: Tensor, targets: Tensor
) -> Callable[[Callable[..., Terms]], None]:
    """One optimiser update, given what computes the terms."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)

    def step(terms: Callable[..., Terms]) -> None:
        with torch.no_grad():
            known = teacher(inputs)
        found = terms(student(inputs), known, targets, 4.0)
        (torch.stack([w * x for w, x in zip(WEIGHTS, found, strict=True)]).sum() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Prints one line a pair."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for teacher_name, student_name, channels, side, classes in PAIRS:
        teacher = build(teacher_name, classes, channels).eval()
        student = build(student_name, classes, channels)
        inputs, targets = torch.randn(64, channels, side, side), torch.randint(classes, (32,))
        step = make_step(teacher, student, inputs, targets)
        paths = {
            "plain": partial(step, plain_terms),
            "fused": partial(step, partial(kd_terms, weights=WEIGHTS)),
        }
        times = interleaved(paths, 60, torch.device("cpu"))
        ratios = [p / f for p, f in zip(times["plain"], times["fused"], strict=True)]
        milliseconds = statistics.median(times["fused"]) * 1e3
        middle = statistics.median(ratios)
        pair = f"{teacher_name}/{student_name}, {classes:,} classes"
        print(f"{pair}: {middle:.3f} (fused {milliseconds:.1f} ms a step)")


if __name__ == "__main__":
    main()
