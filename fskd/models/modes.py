"""Running a network in another mode than it is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

_Norm = nn.modules.batchnorm._NormBase


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Restores the train or eval mode of every module of a network."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_mode(net: nn.Module, mode: Literal["eval", "batch"]) -> Iterator[None]:
    """The network in eval mode, or with batch statistics; everything is as before afterwards.

    With ``batch`` its batch norms normalise by the batch, their running statistics stay as they
    are, and all else is in eval mode.

    Args:
        net: The network.
        mode: ``eval`` or ``batch``.
    """
    norms = [module for module in net.modules() if isinstance(module, _Norm)]
    tracked = [norm.track_running_stats for norm in norms]
    with modes_kept(net):
        net.eval()
        try:
            if mode == "batch":
                for norm in norms:
                    norm.training, norm.track_running_stats = True, False
            yield
        finally:
            for norm, tracks in zip(norms, tracked, strict=True):
                norm.track_running_stats = tracks
