"""Losses usable alone, in any training loop."""

from fskd.losses.divergences import dkd_loss, jensen_shannon, reverse_kl
from fskd.losses.fused.linear import linear_kd_loss
from fskd.losses.fused.objective import kd_loss, kd_loss_and_grad, teacher_logsumexp
from fskd.losses.fused.terms import kd_terms
from fskd.losses.targets import (
    cross_entropy,
    kl_divergence,
    logits_mse,
    mixed_cross_entropy,
    soft_cross_entropy,
)

__all__ = [
    "cross_entropy",
    "dkd_loss",
    "jensen_shannon",
    "kd_loss",
    "kd_loss_and_grad",
    "kd_terms",
    "kl_divergence",
    "linear_kd_loss",
    "logits_mse",
    "mixed_cross_entropy",
    "reverse_kl",
    "soft_cross_entropy",
    "teacher_logsumexp",
]
