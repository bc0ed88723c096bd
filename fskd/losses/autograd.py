"""Where a closed-form gradient cannot stand in for torch's own, and what it refuses."""

import torch
from torch import Tensor

OWN = (Tensor, torch.nn.Parameter)


def is_traced(name: str, impl: str, logits: Tensor) -> bool:
    """Whether somebody follows each operation, so that only the readable definition will do.

    A compiler and torch.func derive their own gradients; fake, distributed and other tensor classes
    have rules of their own, which kept buffers would break.

    Args:
        name: The function that asks.
        impl: What its caller asked for.
        logits: Its first tensor.

    Raises:
        RuntimeError: If ``impl`` is a fused path and torch.func is at work.
    """
    if torch.compiler.is_compiling() or type(logits) not in OWN:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    if impl in ("eager", "compiled"):
        problem = f"{name}(impl='{impl}') cannot be transformed by torch.func"
        raise RuntimeError(f"{problem}; impl='auto' or 'reference' can")
    return True


def refuse_second_derivative(name: str, instead: str = "impl='reference'") -> None:
    """RuntimeError if the gradient is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative; {instead} is differentiable twice")
