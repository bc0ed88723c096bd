"""Methods without networks: leaf tensors stand in for what the passes of a phase gave."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fskd.methods.base import Method, Step, methods
from fskd.methods.compose import Joint, join
from fskd.methods.plan import Given, Stretch
from fskd.methods.words import Term
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

Maps = tuple[tuple[int, ...], ...]


def net(classes: int = 4, dim: int = 3, stages: Maps = (), stem: tuple[int, ...] = ()) -> TapShapes:
    """Tap shapes of a network; without a stem it is like the first stage."""
    return TapShapes((classes,), (dim,), stages, stages, stem or (stages[0] if stages else ()))


def shapes(
    student: TapShapes | None = None, teacher: TapShapes | None = None, n: int = 8, **more: Any
) -> Shapes:
    """Shapes of a run on n examples whose classes alternate; the teacher is like the student."""
    ours = student or net()
    classes = ours.logits[0]
    return Shapes(classes, n, ours, teacher or ours, torch.arange(n) % classes, **more)


def batch(
    real: int | Tensor, generated: int = 0, unlabelled: int = 0, size: tuple[int, ...] = (1, 2, 2)
) -> Batch:
    """Rows of zeros: real ones with these labels (or so many), unlabelled and generated ones."""
    labels = torch.arange(real) % 4 if isinstance(real, int) else real
    known = len(labels) + unlabelled
    parts = {"unlabelled": slice(len(labels), known), "generated": slice(known, known + generated)}
    parts = {name: rows for name, rows in parts.items() if rows.stop > rows.start}
    inputs = torch.zeros(known + generated, *size)
    return Batch(inputs, labels, torch.arange(len(labels)), parts)


def outputs(of: TapShapes, rows: int, seed: int) -> Outputs:
    """Random taps of a network; the logits are a leaf, maps are not negative."""
    rng = torch.Generator().manual_seed(seed)

    def maps(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(rows, *shape, generator=rng)

    logits = torch.randn(rows, *of.logits, generator=rng).requires_grad_(True)
    stages, pre = (tuple(maps(shape) for shape in each) for each in (of.stages, of.pre))
    return Outputs(logits, maps(of.embedding), stages, pre, maps(of.stem))


def joint(names: str, of: Shapes | None = None, **settings: Any) -> Joint:
    """The methods of ``a+b``, built; settings are those of the first."""
    first, *others = names.split("+")
    parts = [(first, methods.get(first).Settings(**settings))]
    parts += [(name, methods.get(name).Settings()) for name in others]
    return join(parts).build(of or shapes())


def phase(of: Joint, name: str = "main") -> Stretch:
    """A phase by name."""
    (found,) = (stretch for stretch in of.stretches() if stretch.name == name)
    return found


def only(given: Given, taps: frozenset[str]) -> Given:
    """What a pass gives that reads these taps."""
    if isinstance(given, Outputs):
        return Outputs(**{tap: getattr(given, tap) for tap in taps})
    return tuple(Outputs(**{tap: getattr(one, tap) for tap in taps}) for one in given)


def speak(
    of: Joint,
    nets: Mapping[str, Given],
    rows: Batch,
    name: str = "main",
    progress: Progress | None = None,
) -> dict[str, Term]:
    """Terms of one step of a phase, where the networks gave ``nets``."""
    stretch = phase(of, name)
    given = [only(nets[run.net], run.taps) for run in stretch.runs]
    return of(given, rows, progress or Progress(stretch.name), stretch)


def values(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    """The losses without their weights."""
    return {name: term.value for name, term in terms.items()}


def weights(terms: Mapping[str, Term]) -> dict[str, float]:
    """The weights."""
    return {name: term.weight for name, term in terms.items()}


def weighted(terms: Mapping[str, Term]) -> Tensor:
    """Weighted sum, not normalised."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def step_of(
    rows: Batch, progress: Progress | None = None, **nets: Outputs | Sequence[Outputs]
) -> Step:
    """A step that sees all rows, for a method that is called by itself."""
    found = {name: one if isinstance(one, Outputs) else tuple(one) for name, one in nets.items()}
    return Step(found, rows, progress or Progress())


def alone(of: Joint) -> Method:
    """The only method."""
    (method,) = of.methods.values()
    return method
