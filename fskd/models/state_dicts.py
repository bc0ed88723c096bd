"""State dicts as others write them: under wrapping keys, with prefixes, with extra entries.

Each function returns what it found and notes, short phrases on what was not taken as it stood.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fskd.models.weight_files import NumpyArray

PLAIN = (
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "student",
    "teacher",
)
AVERAGED = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model")
WRAPPERS = PLAIN + AVERAGED
PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "network.", "backbone.")
PROFILED = ("total_ops", "total_params")  # buffers that the profiler thop leaves behind
COUNTER = "num_batches_tracked"
N_NAMED = 3

State = dict[str, Tensor]
Shapes = Mapping[str, Tensor]


class NotFitting(ValueError):
    """A file's content is no state dict or an ambiguous one; the message says why in a phrase."""


def to_state(content: Any, expected: Shapes, body: Collection[str]) -> tuple[State, list[str]]:
    """The tensors of a file under the names of a network.

    Args:
        content: What the file holds.
        expected: The network's own state dict.
        body: Names that must be in the file; all of them, or all but the classifier's.

    Returns:
        The tensors, and notes. Names may be missing or unexpected; shapes are as in the file.

    Raises:
        NotFitting: If there is no state dict, a weight is there twice, or a value is no tensor.
    """
    found, notes = _unwrap(content, expected, body)
    named, more = _named_as(found, expected, body)
    state, converted = _tensors(named)
    counters = [name for name in expected if name not in state and _is_counter(name, state)]
    filled = [f"{len(counters)} {COUNTER} kept as they were, not in the file"] if counters else []
    state |= {name: expected[name] for name in counters}
    return state, notes + more + converted + filled


def _is_counter(name: str, state: State) -> bool:
    # Old versions of torch had no counters; a layer that is not in the file at all lacks more.
    layer, _, last = name.rpartition(".")
    return last == COUNTER and f"{layer}.running_mean".lstrip(".") in state


def some(names: Iterable[str]) -> str:
    """The first few names."""
    listed = list(names)
    more = ", ..." if len(listed) > N_NAMED else ""
    return ", ".join(listed[:N_NAMED]) + more


def _unwrap(
    content: Any, expected: Shapes, body: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    while True:
        inner = _wrapped(content)
        if not inner:
            break
        plain = [key for key in inner if key in PLAIN] or list(inner)
        # Of a student and a teacher in one file, the one that is of this network.
        several = len(plain) > 1
        fits = {k: _misfits(inner[k], expected, body) if several else 0 for k in plain}
        chosen = min(plain, key=fits.__getitem__)
        notes += [f"{chosen} used"] if chosen in AVERAGED else []
        notes += [f"{key} not used" for key in inner if key != chosen]
        content = inner[chosen]
    if not _has_tensors(content):
        raise NotFitting("no state dict")
    return {str(name): value for name, value in content.items()}, notes


def _wrapped(content: Any) -> dict[str, Any]:
    """The entries of a dict that hold a state dict themselves, the preferred ones first."""
    if not isinstance(content, Mapping):
        return {}
    return {key: content[key] for key in WRAPPERS if _holds_state(content.get(key))}


def _holds_state(value: Any) -> bool:
    return isinstance(value, Mapping) and (_has_tensors(value) or bool(_wrapped(value)))


def _has_tensors(value: Any) -> bool:
    kinds = (Tensor, NumpyArray)
    return isinstance(value, Mapping) and any(isinstance(v, kinds) for v in value.values())


def _misfits(content: Any, expected: Shapes, body: Collection[str]) -> float:
    try:
        state, _ = to_state(content, expected, body)
    except NotFitting:
        return math.inf
    fitting = [n for n in body if n in state and state[n].shape == expected[n].shape]
    return len(body) - len(fitting) + sum(name not in expected for name in state)


def _named_as(
    found: Mapping[str, Any], expected: Shapes, body: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    own = {_last(name) for name in expected}
    ignored = [name for name in found if _last(name) in PROFILED and _last(name) not in own]
    counts = Counter(map(_last, ignored))
    notes = [f"{count} {kind} ignored" for kind, count in counts.items()]
    found = {name: found[name] for name in found if name not in set(ignored)}
    prefix = _prefix(found, expected)
    if not prefix:
        return dict(found), notes
    named, more = _strip(found, prefix, expected, body)
    return named, [*notes, f"prefix {prefix} stripped", *more]


def _prefix(names: Iterable[str], expected: Shapes) -> str:
    """The prefix whose removal gives most names of the network, none if it gives no more."""
    names = list(names)
    found = {choice for name in names for choice in _prefixes(name)}
    choices = sorted(found | {""}, key=lambda prefix: (len(prefix), prefix))
    # The first of the best: the shortest, which is none where that is as good.
    return max(choices, key=lambda p: len({n.removeprefix(p) for n in names} & expected.keys()))


def _prefixes(name: str) -> list[str]:
    found = [""]
    while True:
        rest = name[len(found[-1]) :]
        part = next((part for part in PREFIXES if rest.startswith(part)), None)
        if part is None:
            return found
        found.append(found[-1] + part)


def _strip(
    found: Mapping[str, Any], prefix: str, expected: Shapes, body: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    named: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, value in found.items():
        name = source.removeprefix(prefix)
        if name in named:
            raise _twice(name, sources[name], source)
        named[name], sources[name] = value, source
    beside = [n for n in named if n not in expected and sources[n] == n]
    if not beside or any(name not in named for name in body if _last(name) != COUNTER):
        return named, []
    for name in beside:
        for rival in (name.removeprefix(other) for other in _prefixes(name)[1:]):
            if rival in named:
                raise _twice(rival, sources[rival], name)
    kept = {name: value for name, value in named.items() if name not in set(beside)}
    return kept, [f"{len(beside)} without that prefix ignored: {some(beside)}"]


def _twice(name: str, first: str, second: str) -> NotFitting:
    return NotFitting(f"{name} is in it twice, as {first} and as {second}")


def _tensors(named: Mapping[str, Any]) -> tuple[State, list[str]]:
    state: State = {}
    arrays = 0
    for name, value in named.items():
        arrays += isinstance(value, NumpyArray)
        tensor = value.tensor if isinstance(value, NumpyArray) else value
        if not isinstance(tensor, Tensor):
            raise NotFitting(f"{name} is no tensor but of type {type(value).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise NotFitting(f"{name} is a sparse, quantised or empty tensor")
        state[name] = tensor
    return state, [f"{arrays} numpy arrays made tensors"] if arrays else []


def _last(name: str) -> str:
    return name.rpartition(".")[2]
