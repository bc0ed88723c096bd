"""Losses usable alone, in any training loop."""

from fskd.losses.targets import (
    cross_entropy,
    kl_divergence,
    logits_mse,
    mixed_cross_entropy,
    soft_cross_entropy,
)

__all__ = [
    "cross_entropy",
    "kl_divergence",
    "logits_mse",
    "mixed_cross_entropy",
    "soft_cross_entropy",
]
