"""What a network computes, call by call, as it runs: its own control flow needs no trace."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fskd.models.modes import modes_kept


class Call(NamedTuple):
    """One function of tensors.

    Attributes:
        name: The function's, such as ``conv2d``, ``add`` or ``relu``.
        inputs: Numbers of the calls that made its inputs; -1 for the images.
        weights: Names of the parameters and buffers that it reads.
        channels: Size of dimension 1 of the result; 0 if there is none.
    """

    name: str
    inputs: tuple[int, ...]
    weights: tuple[str, ...]
    channels: int


class Listener(TorchFunctionMode):
    """Keeps copies of what calls give, by their number.

    Calls of one network on images of one size have equal numbers whenever it runs in eval mode.

    Args:
        numbers: The calls.

    Attributes:
        found: Their results.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._wanted, self._n = frozenset(numbers), 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            if self._n in self._wanted:  # a copy, as a later call may write in place
                self.found[self._n] = out.detach().clone()
            self._n += 1
        return out


class _Recorder(TorchFunctionMode):
    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        state = [*net.named_parameters(), *net.named_buffers()]
        self.names = {id(value): name for name, value in state}
        self.made = {id(images): -1}
        self.alive: list[Tensor] = [images]  # or another tensor might get the same id
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [id(x) for x in _flat((*args, *kwargs.values()))]
        inputs = tuple(self.made[x] for x in given if x in self.made)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            weights = tuple(self.names[x] for x in given if x in self.names)
            channels = out.shape[1] if out.dim() > 1 else 0
            self.made[id(out)] = len(self.calls)
            self.alive.append(out)
            self.calls.append(Call(_name(func), inputs, weights, channels))
        return out


def record(net: nn.Module, size: tuple[int, ...]) -> list[Call]:
    """The calls of a network on two images in eval mode, in order; the last one gives its output.

    Args:
        net: A network that maps images to one tensor; it is left as it was.
        size: (C, H, W) of the images.

    Example:
        >>> from fskd.models.catalog import build
        >>> [call.name for call in record(build("cnn_tiny", 10, 1), (1, 8, 8))][:3]
        ['conv2d', 'batch_norm', 'relu']
    """
    first = next(net.parameters(), torch.empty(0))
    images = torch.zeros((2, *size), dtype=first.dtype, device=first.device)
    with torch.no_grad(), modes_kept(net):
        net.eval()
        with _Recorder(net, images) as recorder:
            net(images)
    return recorder.calls


def _flat(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", func)).strip("_")
