"""Numbers about a trained network: accuracy, calibration, and fidelity to its teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fskd.data.loader import chunks
from fskd.generators.mixup import interpolate
from fskd.models.taps import FeatureNet
from fskd.seeding import torch_generator
from fskd.types import ImageSet

N_PATHS = 1024  # points between training pairs; the standard error of the mean is below 0.01


@torch.no_grad()
def predict(
    net: FeatureNet,
    images: ImageSet,
    device: torch.device,
    subset: Tensor | None = None,
    workers: int = 2,
) -> Tensor:
    """Logits in eval mode without augmentation, float32 (N, K) on the CPU, in order."""
    training = net.training
    net.eval()
    parts = [
        net(x).logits.float().cpu() for x, _ in chunks(images, device, subset, workers=workers)
    ]
    net.train(training)
    return torch.cat(parts)


def scores(logits: Tensor, targets: Tensor) -> dict[str, float | None]:
    """Top-1, top-5 (with more than ten classes), NLL in nats and ECE with 15 bins.

    Args:
        logits: (N, K) float.
        targets: (N,) int64.
    """
    # On first use: importing torchmetrics takes longer than finding a mistake in the settings.
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    classes = logits.shape[1]
    log_probs = F.log_softmax(logits.double(), dim=1)

    def top(k: int) -> float:
        return float(multiclass_accuracy(logits, targets, classes, average="micro", top_k=k))

    ece = multiclass_calibration_error(log_probs.exp().float(), targets, classes, n_bins=15)
    return {
        "top1": top(1),
        "top5": top(5) if classes > 10 else None,
        "nll": float(F.nll_loss(log_probs, targets)),
        "ece": float(ece),
    }


def total_variation(student: Tensor, teacher: Tensor) -> float:
    """Mean over rows of half the L1 distance between the class probabilities, in [0, 1]."""
    difference = F.softmax(student.double(), 1) - F.softmax(teacher.double(), 1)
    return float(difference.abs().sum(1).mean() / 2)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of rows on which both predict the same class."""
    return float((student.argmax(1) == teacher.argmax(1)).double().mean())


@torch.no_grad()
def path_variation(
    student: FeatureNet,
    teacher: FeatureNet,
    images: ImageSet,
    subset: Tensor,
    device: torch.device,
    seed: int,
) -> float:
    """Mean total variation on random points between random pairs of training points."""
    rng = torch_generator(seed, "paths")
    pairs = torch.randint(len(subset), (2, N_PATHS), generator=rng)
    lam = torch.rand(N_PATHS, generator=rng)
    needed, where = subset[pairs].unique(return_inverse=True)
    inputs = torch.cat([x.cpu() for x, _ in chunks(images, device, needed)])
    student_logits, teacher_logits = [], []
    modes = student.training, teacher.training
    student.eval()
    teacher.eval()
    for part in torch.arange(N_PATHS).split(256):
        points = interpolate(inputs, where[1, part], lam[part], where[0, part]).to(device)
        student_logits.append(student(points).logits.float().cpu())
        teacher_logits.append(teacher(points).logits.float().cpu())
    student.train(modes[0])
    teacher.train(modes[1])
    return total_variation(torch.cat(student_logits), torch.cat(teacher_logits))
