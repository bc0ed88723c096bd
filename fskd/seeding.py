"""Randomness as an argument: every stream is derived from (run seed, purpose, ...).

Adding a consumer never shifts another's draws, and a resumed run needs no saved generator state,
because the stream of step t is a function of the seed and t alone.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, by sha256 (as DomainBed's ``seed_hash``).

    Example:
        >>> derive(0, "order", 3) == derive(0, "order", 3)
        True
        >>> derive(0, "order", 3) == derive(0, "order", 4)
        False
    """
    # int() because a NumPy integer prints differently, and not alike in every version.
    parts = (part if isinstance(part, str) else int(part) for part in purpose)
    text = repr((int(seed), *parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator; draws are made on the CPU so that they are the same on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def seed_global(seed: int, device: torch.device) -> None:
    """Seeds the global generators that dropout and the like draw from on a device.

    Unlike ``torch.manual_seed`` it leaves devices that are not used alone, for which torch would
    keep a stack trace at every call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def to_device(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves draws, which are made on the CPU; a GPU does not wait for them."""
    if device.type == "cuda":
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for samplers and statistics."""
    return np.random.default_rng(derive(seed, *purpose))
