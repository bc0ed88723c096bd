"""What functions with closed-form gradients share: when they cannot be used, and what they keep."""

from collections.abc import Sequence
from typing import Any

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


def keep(ctx: Any, tensors: tuple[Tensor | None, ...], few: bool = False) -> None:
    """Keeps a function's inputs for its backward pass, as ``save_for_backward`` does.

    That refuses tensors made in inference mode, as teachers' logits often are, so these are kept
    without it.

    Args:
        ctx: The function's context.
        tensors: Its inputs.
        few: Whether they are so small that they may live as long as the loss, which is faster.
    """
    if few:
        ctx.own = tensors
    else:
        ctx.own = tuple(x if x is not None and x.is_inference() else None for x in tensors)
        pairs = zip(tensors, ctx.own, strict=True)
        ctx.save_for_backward(*(x if own is None else None for x, own in pairs))
    ctx.versions = _versions(ctx.own)


def kept(ctx: Any) -> tuple[Any, ...]:
    """What ``keep`` was given.

    Raises:
        RuntimeError: If a tensor has been changed in place since.
    """
    if _versions(ctx.own) != ctx.versions:
        raise RuntimeError("logits or targets were changed in place before their backward pass")
    saved = ctx.saved_tensors or ctx.own
    return tuple(x if own is None else own for x, own in zip(saved, ctx.own, strict=True))


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    """How often each has been changed in place; tensors made in inference mode do not count it."""
    return [x._version for x in tensors if x is not None and not x.is_inference()]
