"""Numbers about a trained network: accuracy, calibration, and fidelity to its teacher."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fskd.data.loader import chunks, rows_at_once
from fskd.generators.mixup import interpolate
from fskd.seeding import torch_generator
from fskd.types import ImageSet

N_PATHS = 1024  # points between training pairs; the standard error of the mean is below 0.01


@torch.no_grad()
def predict(
    net: nn.Module,
    images: ImageSet,
    device: torch.device,
    subset: Tensor | None = None,
    workers: int = 2,
    seen: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Logits in eval mode without augmentation, float32 (N, K) on the CPU, in order.

    Args:
        net: The network.
        images: The images.
        device: Where it runs.
        subset: Positions of N of them; all if None.
        workers: Decoding processes for images on disk.
        seen: Told how many images have gone through, now and then.
    """
    training = net.training
    net.eval()
    start, logits = 0, torch.empty(0)
    for inputs, _ in chunks(images, device, subset, workers=workers):
        part = net(inputs).logits
        if not len(logits):  # one array that is filled: no second copy at the end
            logits = torch.empty(len(images if subset is None else subset), part.shape[1])
        logits[start : start + len(part)] = part
        start += len(part)
        seen(len(part))
    net.train(training)
    return logits


def scores(logits: Tensor, targets: Tensor) -> dict[str, float | None]:
    """Top-1, top-5 (with more than ten classes), NLL in nats and ECE with 15 bins.

    Args:
        logits: (N, K) float.
        targets: (N,) int64.
    """
    log_probs = F.log_softmax(logits.double(), dim=1)
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    return {
        "top1": float(hits[:, 0].double().mean()),
        "top5": float(hits.any(1).double().mean()) if logits.shape[1] > 10 else None,
        "nll": float(F.nll_loss(log_probs, targets)),
        "ece": calibration_error(log_probs.exp(), targets),
    }


def calibration_error(probs: Tensor, targets: Tensor, n_bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, arXiv 1706.04599; equally
    wide bins of the confidence, closed on the right.

    Args:
        probs: Class probabilities, (N, K).
        targets: (N,) int64.
        n_bins: Number of bins.

    Returns:
        A share in [0, 1].
    """
    confidence, predicted = probs.double().max(1)
    gap = (predicted == targets).double() - confidence
    bins = (confidence * n_bins).ceil().long().clamp(1, n_bins) - 1
    return float(torch.zeros(n_bins).double().index_add_(0, bins, gap).abs().sum() / len(gap))


def total_variation(student: Tensor, teacher: Tensor) -> float:
    """Mean over rows of half the L1 distance between the class probabilities, in [0, 1]."""
    difference = F.softmax(student.double(), 1) - F.softmax(teacher.double(), 1)
    return float(difference.abs().sum(1).mean() / 2)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of rows on which both predict the same class."""
    return float((student.argmax(1) == teacher.argmax(1)).double().mean())


@torch.no_grad()
def path_variation(
    student: nn.Module,
    teacher: nn.Module,
    images: ImageSet,
    subset: Tensor,
    device: torch.device,
    seed: int,
    n: int = N_PATHS,
) -> float:
    """Mean total variation on ``n`` random points between random pairs of training points."""
    rng = torch_generator(seed, "paths")
    pairs = torch.randint(len(subset), (2, n), generator=rng)
    lam = torch.rand(n, generator=rng)
    modes = student.training, teacher.training
    student.eval()
    teacher.eval()
    found = []
    for part in torch.arange(n).split(rows_at_once(images.size, device)):
        needed, where = subset[pairs[:, part]].unique(return_inverse=True)
        inputs = torch.cat([x for x, _ in chunks(images, device, needed, workers=0)])
        points = interpolate(inputs, where[1].to(device), lam[part].to(device), where[0].to(device))
        found.append((student(points).logits.float().cpu(), teacher(points).logits.float().cpu()))
    student.train(modes[0])
    teacher.train(modes[1])
    ours, theirs = (torch.cat(logits) for logits in zip(*found, strict=True))
    return total_variation(ours, theirs)
