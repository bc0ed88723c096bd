"""Optimisers and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fskd.config import OptimConfig
from fskd.methods.base import ParamGroup
from fskd.train.plain_optim import SGD, Adam


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


def build_optimizers(
    students: Iterable[nn.Parameter], groups: list[ParamGroup], config: OptimConfig
) -> list[torch.optim.Optimizer]:
    """SGD for students and adapters, and Adam where a method asks for a second optimiser.

    Parameters that are frozen are left out. Every group keeps its learning rate at the peak of the
    schedule as ``peak``.
    """
    sgd, adam = [], []
    for group in [ParamGroup(list(students)), *groups]:
        params = [p for p in group.params if p.requires_grad]
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        if not params:
            continue
        if group.optimizer == "adam":
            adam.append({"params": params, "peak": group.lr_scale, "weight_decay": decay})
        else:
            peak = config.lr * group.lr_scale
            sgd.append({"params": params, "peak": peak, "weight_decay": decay})
    optimizers: list[torch.optim.Optimizer] = []
    if sgd:
        momentum, nesterov, fused = config.momentum, config.nesterov, _has_fused(sgd)
        optimizers.append(SGD(sgd, config.lr, momentum=momentum, nesterov=nesterov, fused=fused))
    if adam:
        optimizers.append(Adam(adam, fused=_has_fused(adam)))
    return optimizers


def _has_fused(groups: list[dict[str, Any]]) -> bool:
    """Whether torch updates all parameters in one call, a third of the time of several."""
    return all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
        for group in groups
        for parameter in group["params"]
    )


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's rate to ``factor`` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
