"""Times and memory of the loss paths; ``fskd.benchmark`` prints them."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.losses.fused import compiled, dispatch, execute
from fskd.losses.fused.linear import linear_kd_loss
from fskd.losses.fused.objective import kd_loss, kd_loss_and_grad
from fskd.results.store import write_text

T, CE, KD, GENERATED = 4.0, 0.1, 0.9, 1.0
WIDTH = 768  # of the hidden rows in the part ``linear``
LARGE = 30_000  # classes from which the last layer is worth fusing

Step = Callable[[], object]


class Row(NamedTuple):
    """One path at one shape.

    Attributes:
        part: What is compared: ``kd``, ``kdplus`` (real and generated rows) or ``linear``.
        device: Device type.
        dtype: Precision of the logits.
        rows: R.
        classes: C.
        path: Which implementation.
        microseconds: Median time of a call, forward and backward.
        ratio: Median over rounds of the plain composition's time divided by this one's.
        extra: Peak memory beyond the logits' gradient, in units of R*C elements; in the part
            ``linear`` with the weight's gradient, which is C*D elements.
        copy_bound: Time to read both logits and write the gradient once, divided by this time.
    """

    part: str
    device: str
    dtype: str
    rows: int
    classes: int
    path: str
    microseconds: float
    ratio: float
    extra: float
    copy_bound: float


def plain(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """What published code composes: cross-entropy plus T^2 times torch's KL."""
    log_q = F.log_softmax(student / T, dim=1)
    kl = F.kl_div(log_q, F.softmax(teacher / T, dim=1), reduction="batchmean")
    return CE * F.cross_entropy(student, targets) + KD * T * T * kl


def measure(
    rows: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    names: Sequence[str],
) -> list[Row]:
    """All paths of the chosen parts at one shape."""
    torch.manual_seed(0)
    found = []
    for name in names:
        found += MEASURES[name](rows, classes, dtype, device, rounds)
    return found


def _logits(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Student (with gradient), teacher and labels."""
    student, teacher = (torch.randn(2, rows, classes, device=device) * 3).to(dtype).unbind()
    labels = torch.randint(classes, (rows,), device=device)
    return [student.contiguous().requires_grad_(), teacher.contiguous(), labels]


def _backward(loss: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Step:
    """Forward and backward, with gradients that are new each time."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return call


def _kd(
    rows: int, classes: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> list[Row]:
    """Labels and teacher on real rows."""
    student, teacher, labels = _logits(rows, classes, dtype, device)
    bare, buffer = student.detach(), torch.empty_like(student)
    composed = torch.compile(plain, dynamic=False)
    paths: dict[str, Step] = {
        "plain": _backward(lambda: plain(student, teacher, labels), [student]),
        "plain, compiled": _backward(lambda: composed(student, teacher, labels), [student]),
    }
    for impl in ("eager", "compiled"):
        ours = partial(kd_loss, student, teacher, labels, impl=impl)
        paths[f"kd_loss, {impl}"] = _backward(ours, [student])
        paths[f"gradient in a reused buffer, {impl}"] = partial(
            kd_loss_and_grad, bare, teacher, labels, impl=impl, out=buffer
        )
    peer = _torchdistill(student, teacher, labels)
    if peer is not None:
        paths["torchdistill"] = _backward(peer, [student])
    bound = partial(torch.add, bare, teacher, out=buffer)  # reads both, writes one
    return _rows("kd", rows, classes, dtype, device, _timed(paths, bound, rounds, device), paths)


def _kdplus(
    rows: int, classes: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> list[Row]:
    """Half of the rows are generated: one call against two plain losses."""
    if rows < 2:
        return []
    student, teacher, labels = _logits(rows, classes, dtype, device)
    n = rows // 2
    real = labels[:n].contiguous()

    def two_losses() -> Tensor:
        log_q = F.log_softmax(student[n:] / T, dim=1)
        kl = F.kl_div(log_q, F.softmax(teacher[n:] / T, dim=1), reduction="batchmean")
        return plain(student[:n], teacher[:n], real) + GENERATED * T * T * kl

    paths: dict[str, Step] = {"two plain losses": _backward(two_losses, [student])}
    for impl in ("eager", "compiled"):
        ours = partial(kd_loss, student, teacher, real, impl=impl)
        paths[f"kd_loss, {impl}"] = _backward(ours, [student])
    times = _timed(paths, None, rounds, device)
    return _rows("kdplus", rows, classes, dtype, device, times, paths)


def _linear(
    rows: int, classes: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> list[Row]:
    """With the last layer of student and teacher, for large class counts."""
    if classes < LARGE:
        return []
    hidden, known = (torch.randn(2, rows, WIDTH, device=device)).to(dtype).unbind()
    weight, known_weight = (torch.randn(2, classes, WIDTH, device=device) / 28).to(dtype).unbind()
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    known, known_weight = known.clone(), known_weight.clone()
    labels = torch.randint(classes, (rows,), device=device)
    leaves = [hidden, weight]
    paths: dict[str, Step] = {
        "plain": _backward(
            lambda: plain(F.linear(hidden, weight), F.linear(known, known_weight), labels), leaves
        ),
        "linear_kd_loss": _backward(
            lambda: linear_kd_loss(
                hidden, weight, teacher_hidden=known, teacher_weight=known_weight, targets=labels
            ),
            leaves,
        ),
    }
    peer = _liger(hidden, weight, known, known_weight, labels)
    if peer is not None:
        paths["Liger-Kernel (same terms)"] = _backward(peer, leaves)
    times = _timed(paths, None, min(rounds, 5), device)
    return _rows("linear", rows, classes, dtype, device, times, paths)


MEASURES = {"kd": _kd, "kdplus": _kdplus, "linear": _linear}


def _torchdistill(student: Tensor, teacher: Tensor, labels: Tensor) -> Callable[[], Tensor] | None:
    """The KDLoss of torchdistill, if it is installed."""
    try:
        peer = import_module("torchdistill.losses.mid_level")
    except Exception:  # not installed, or not with this torch
        return None
    loss = peer.KDLoss("s", "output", "t", "output", temperature=T, alpha=CE)
    return lambda: loss({"s": {"output": student}}, {"t": {"output": teacher}}, labels)


def _liger(
    hidden: Tensor, weight: Tensor, known: Tensor, known_weight: Tensor, labels: Tensor
) -> Callable[[], Tensor] | None:
    """Liger-Kernel's chunked distillation in plain torch, if it is installed and imports."""
    try:
        peer = import_module("liger_kernel.chunked_loss")
    except Exception:  # not installed, or it wants a GPU
        return None
    weights = {"weight_hard_loss": CE, "weight_soft_loss": KD * T * T}
    loss = peer.LigerFusedLinearJSDLoss(
        **weights, beta=0.0, temperature=T, compiled=False, chunk_size=64
    )
    return lambda: loss(hidden, weight, known, known_weight, labels)


def _timed(
    paths: dict[str, Step], bound: Step | None, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Times of all paths and of the copy bound, under the empty name."""
    every = {**paths, "": bound} if bound is not None else dict(paths)
    return interleaved(every, rounds, device)


def interleaved(
    paths: dict[str, Step], rounds: int, device: torch.device, seconds: float = 0.05
) -> dict[str, list[float]]:
    """Seconds a call of every path in every round, after two calls that warm up.

    Args:
        paths: What is timed.
        rounds: How many times all are timed.
        device: Where; a GPU is waited for.
        seconds: About how long a path is timed in one round.
    """

    def timed(call: Step, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in paths.items():
        timed(call, 1)
        repeats[name] = max(1, round(seconds / max(timed(call, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, call in paths.items():
            times[name].append(timed(call, repeats[name]))
    return times


def _rows(
    part: str,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device,
    times: dict[str, list[float]],
    paths: dict[str, Step],
) -> list[Row]:
    """One row a path; the first path is the base."""
    base = times[next(iter(paths))]
    bound = statistics.median(times[""]) if "" in times else math.nan
    name = str(dtype).removeprefix("torch.")
    found = []
    for path, call in paths.items():
        middle = statistics.median(times[path])
        ratio = statistics.median(b / t for b, t in zip(base, times[path], strict=True))
        outputs = 0 if "reused" in path or part == "linear" else rows * classes
        extra = max(peak(call, device) / dtype.itemsize - outputs, 0.0) / (rows * classes)
        place = (part, device.type, name, rows, classes, path)
        found.append(Row(*place, middle * 1e6, ratio, extra, bound / middle))
    return found


def peak(call: Step, device: torch.device) -> int:
    """Most bytes that a warm call has allocated at once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's library prints its stages otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    alive = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def keep(rows: Sequence[Row]) -> Path:
    """Stores the part ``kd`` where ``kd_loss(impl="auto")`` looks; other devices' rows stay."""
    shapes: dict[tuple[str, str, int, int], dict[str, float]] = {}
    for row in rows:
        if row.part == "kd":
            key = (row.device, row.dtype, row.rows, row.classes)
            shapes.setdefault(key, {})[row.path] = row.microseconds
    entries = [
        dispatch.Entry(
            *key,
            reference=times["plain"],
            eager=times["kd_loss, eager"],
            compiled=times["kd_loss, compiled"],
            compile_seconds=compiled.TYPICAL_SECONDS,
        )
        for key, times in shapes.items()
    ]
    measured = {(entry.device, entry.dtype) for entry in entries}
    path = dispatch.user_table()
    old = dispatch.read_table(path.read_text(encoding="utf-8")) if path.is_file() else []
    kept = [entry for entry in old if (entry.device, entry.dtype) not in measured]
    text = json.dumps({"entries": [entry._asdict() for entry in kept + entries]}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    execute.forget()
    return path
