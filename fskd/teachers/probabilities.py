"""Probabilities that somebody else computed: checked, and turned into logits."""

from typing import Any

import torch
from torch import Tensor

LEAST = 1e-12
TOLERANCE = 1e-3


def read_probabilities(answer: Any, rows: int, num_classes: int, device: torch.device) -> Tensor:
    """An answer as float32 probabilities (rows, K).

    Args:
        answer: A tensor, an array or nested lists.
        rows: Rows that were asked about.
        num_classes: K.
        device: Where they are wanted.

    Raises:
        ValueError: With what is wrong, as a phrase.
    """
    try:
        probs = torch.as_tensor(answer).detach().to(device, torch.float32)
    except Exception:  # the answer may be anything
        raise ValueError(f"{type(answer).__name__} instead of a table of numbers") from None
    if probs.shape != (rows, num_classes):
        shape = "x".join(map(str, probs.shape)) or "one number"
        raise ValueError(f"{shape} instead of {rows}x{num_classes} probabilities")
    if not probs.isfinite().all():
        raise ValueError("probabilities that are not finite")
    if (probs < 0).any():
        raise ValueError(f"a probability of {float(probs.min()):.3g} (perhaps it gives logits)")
    totals = probs.sum(1)
    if ((totals - 1).abs() > TOLERANCE).any():
        worst = float(totals[(totals - 1).abs().argmax()])
        raise ValueError(f"a row that sums to {worst:.4g}, not 1 (perhaps it gives logits)")
    return probs


def log_probabilities(probs: Tensor) -> Tensor:
    """The log of p, with p of at least 1e-12, so that it is finite."""
    return probs.clamp_min(LEAST).log()
