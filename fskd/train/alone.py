"""One process on one device: what the loop uses of Lightning Fabric, without importing it."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
AnyFabric: TypeAlias = Union["Alone", "Fabric"]


class Alone:
    """A process without others, with Fabric's names for what it does.

    With ``bf16-mixed`` every operation and conversion is the one that Fabric makes, so the numbers
    are the same.

    Args:
        device: Where networks run.
        precision: ``32-true`` or ``bf16-mixed``.
    """

    is_global_zero = True
    global_rank = 0
    world_size = 1

    def __init__(self, device: torch.device, precision: str = "32-true") -> None:
        self.device, self.mixed = device, precision == "bf16-mixed"

    def setup(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> tuple[Any, ...]:
        """The module in this precision and on this device, and the optimisers as they are."""
        module.to(self.device)
        return (_Mixed(module, self) if self.mixed else module, *optimizers)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision for what runs outside the module."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.mixed else nullcontext()

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Gradients; options are those of ``Tensor.backward``."""
        loss.backward(**options)

    def clip_gradients(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> Tensor:
        """Clips the gradients of an optimiser's parameters by their common norm."""
        own = [p for group in optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(own, max_norm, error_if_nonfinite=True)

    def broadcast(self, value: T) -> T:
        """What the first process has."""
        return value

    def all_reduce(self, values: Tensor, reduce_op: str = "mean") -> Tensor:
        """Mean or sum over the processes."""
        return values

    def barrier(self) -> None:
        """Waits for the other processes."""


class _Mixed(nn.Module):
    """A module whose floating-point inputs are bfloat16 and whose outputs are float32."""

    def __init__(self, module: nn.Module, place: Alone) -> None:
        super().__init__()
        self.module, self.place = module, place

    def forward(self, *inputs: Any) -> Any:
        with self.place.autocast():
            outputs = self.module(*_cast(inputs, torch.bfloat16))
        return _cast(outputs, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same tree of tuples and dictionaries with its floating-point tensors as ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [_cast(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
