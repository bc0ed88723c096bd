"""Generators of out-of-distribution points, usable alone, in any training loop.

Example:
    >>> import torch
    >>> from fskd.types import Batch
    >>> real = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    >>> longer = Mixup()(real, torch.Generator().manual_seed(0))
    >>> longer.inputs.shape, longer.n_generated
    (torch.Size([8, 1, 8, 8]), 4)
"""

from fskd.generators.base import Generator, GeneratorSettings, Mixed
from fskd.generators.blind_mixpatch import BlindMixPatch
from fskd.generators.cutmix import CutMix
from fskd.generators.mixpatch import MixPatch
from fskd.generators.mixup import Mixup, interpolate

__all__ = [
    "BlindMixPatch",
    "CutMix",
    "Generator",
    "GeneratorSettings",
    "MixPatch",
    "Mixed",
    "Mixup",
    "interpolate",
]
