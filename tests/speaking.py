"""What the methods of a run say about outputs that are made by hand."""

from typing import Any

import torch

from fskd.methods.base import methods
from fskd.methods.compose import Joint, join
from fskd.methods.words import Term
from fskd.types import Batch, Outputs, Progress, Shapes


def joint(names: str, shapes: Shapes, **settings: Any) -> Joint:
    """The methods joined by ``+``; settings are the first one's."""
    first, *rest = names.split("+")
    parts = [(first, methods.get(first).Settings(**settings))]
    parts += [(name, methods.get(name).Settings()) for name in rest]
    return join(parts).build(shapes)


def speak(
    run: Joint, batch: Batch, progress: Progress | None = None, **nets: Outputs
) -> dict[str, Term]:
    """Terms of one phase, each network having given the same to all of its passes."""
    progress = progress or Progress()
    stretch = next(s for s in run.stretches() if s.name == progress.phase)
    return run([nets[asked.net] for asked in stretch.runs], batch, progress, stretch)


def values(terms: dict[str, Term]) -> dict[str, torch.Tensor]:
    """Unweighted terms."""
    return {name: term.value for name, term in terms.items()}


def weights(terms: dict[str, Term]) -> dict[str, float]:
    """Weights of terms."""
    return {name: term.weight for name, term in terms.items()}


def generated(n_real: int, n_generated: int) -> dict[str, slice]:
    """Where generated rows lie behind real ones."""
    return {"generated": slice(n_real, n_real + n_generated)}
