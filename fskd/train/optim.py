"""Optimisers and the learning rate as a function of the step."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fskd.settings import OptimConfig
from fskd.train.plain_optim import SGD, Adam, AdamW


def lr_factor(config: OptimConfig, done: float) -> float:
    """Learning rate divided by its peak when a share ``done`` in [0, 1] of the steps is over.

    ``onecycle`` rises from 1/25 by half a cosine during ``warmup`` and falls to 0 by another
    (Smith and Topin, 2018, arXiv 1708.07120, with torch's shape); ``cosine`` falls to 0 by half a
    cosine, ``milestones`` by steps, and both begin at the peak.

    Example:
        >>> [round(lr_factor(OptimConfig(), x), 3) for x in (0.0, 0.3, 1.0)]
        [0.04, 1.0, 0.0]
    """
    if config.schedule == "onecycle":
        if done < config.warmup:
            rise = 0.5 - 0.5 * math.cos(math.pi * done / config.warmup)
            return 0.04 + 0.96 * rise
        return 0.5 + 0.5 * math.cos(math.pi * (done - config.warmup) / (1 - config.warmup))
    if config.schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * done)
    if config.schedule == "milestones":
        return config.decay ** sum(done >= milestone for milestone in config.milestones)
    return 1.0


def build_optimizer(
    parameters: Sequence[nn.Parameter],
    config: OptimConfig,
    heads: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The optimiser that the settings name, fused where torch has it.

    Every group keeps its learning rate at the peak of the schedule as ``peak``.

    Args:
        parameters: What it updates, at least one.
        config: Settings.
        heads: Those among the parameters that ``body_lr`` does not slow down.
    """
    heads_known = {id(parameter) for parameter in heads}
    groups: list[dict[str, Any]] = [{"params": list(parameters), "peak": config.lr}]
    if config.body_lr != 1 and heads_known:
        fast = [p for p in parameters if id(p) in heads_known]
        slow = [p for p in parameters if id(p) not in heads_known]
        parted = ((slow, config.lr * config.body_lr), (fast, config.lr))
        groups = [{"params": own, "peak": peak} for own, peak in parted if own]
    common: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "fused": _has_fused(parameters),
    }
    if config.name == "sgd":
        return SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **common)
    return (Adam if config.name == "adam" else AdamW)(groups, **common)


def _has_fused(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether torch updates all parameters in one call, a third of the time of several."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's rate to ``factor`` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
