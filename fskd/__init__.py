"""Few-shot and data-efficient knowledge distillation.

``fskd.distill`` does from Python what ``python -m fskd.run`` does from the command line;
``fskd.losses``, ``fskd.generators`` and ``fskd.data`` are usable alone.
"""

from typing import TYPE_CHECKING, Any

from fskd._version import __version__

if TYPE_CHECKING:
    from fskd.api import distill

__all__ = ["__version__", "distill"]


def __getattr__(name: str) -> Any:
    # Imported on first use: reading results must not import torch.
    if name == "distill":
        from fskd.api import distill

        return distill
    raise AttributeError(f"module 'fskd' has no attribute '{name}'")
