"""Weights of one network on disk: written as safetensors, read also from what others published.

Reading never runs code that a file brings along.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.heads import classifier_names, in_any, resampled, without_head
from fskd.models.state_dicts import WRAPPERS, NotFitting, some, to_state
from fskd.models.weight_files import read_file
from fskd.results.store import replacing

ABOUT = "fskd"


def save_weights(net: nn.Module, path: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Writes a network's state dict as safetensors; the file is complete or absent.

    Args:
        net: The network.
        path: The file; its folder is made if need be, a file of that name is replaced.
        about: What ``read_about`` gives back, such as the network's name. Equal weights and
            words give equal bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in net.state_dict().items()
    }
    # One entry: safetensors writes several in an order that differs from process to process.
    header = None if about is None else {ABOUT: json.dumps(dict(about), sort_keys=True)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata=header)


def read_about(path: str | Path) -> dict[str, str]:
    """What ``save_weights`` was told about a file; nothing for any other, absent or damaged file.

    Example:
        >>> read_about("absent.safetensors")
        {}
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[ABOUT])
        return {str(key): str(value) for key, value in about.items()}
    except Exception:  # a file that says nothing is not an error, in whatever way it does so
        return {}


def load_weights(
    net: nn.Module, path: str | Path, setting: str = "teacher.checkpoint"
) -> list[str]:
    """Loads all weights of a network from a file, or changes nothing and says why.

    Args:
        net: The network; every parameter and buffer must be in the file with its shape.
        path: A safetensors file, or one that ``torch.save`` wrote, which holds a state dict, bare
            or under keys such as ``model`` or ``state_dict``, with or without prefixes such as
            ``module.``.
        setting: Name of the setting that the path came from, for messages.

    Returns:
        Notes: a short phrase for each thing that was not taken as it stood; none for a plain file.

    Raises:
        SettingError: If the file is missing, damaged, would run code, or is of another network or
            another number of classes.
    """
    path, expected = Path(path), net.state_dict()
    state, notes = _read(path, setting, expected, tuple(expected))
    return notes + _load(net, state, path, setting)


def load_body(net: nn.Module, path: str | Path, setting: str = "student.init") -> list[str]:
    """Loads all weights of a network but its classifier's, whose classes are others.

    The classifier keeps its fresh weights, even if those of the file would fit it. In the file it
    may be of another shape or name, or absent. The position embeddings of a timm vision
    transformer are resampled if its images are of another size. All else is as in
    ``load_weights``.

    Args:
        net: The network.
        path: As in ``load_weights``.
        setting: Name of the setting that the path came from, for messages.

    Returns:
        Notes, as in ``load_weights``; one names the classifier.

    Raises:
        SettingError: As in ``load_weights``.
    """
    path, expected, heads = Path(path), net.state_dict(), classifier_names(net)
    body = tuple(name for name in expected if not in_any(name, heads))
    state, notes = _read(path, setting, expected, body)
    state, left = without_head(state, expected, heads)
    _check_names(expected, state, path, setting)
    state, fitted = resampled(net, state)
    return notes + left + fitted + _load(net, state, path, setting)


def _read(
    path: Path, setting: str, expected: Mapping[str, Tensor], body: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    content: Any = read_file(path, setting)
    try:
        return to_state(content, expected, body)
    except (NotFitting, RecursionError) as error:  # the latter: a dict within itself
        accepted = f"a state dict of tensors, bare or under {', '.join(WRAPPERS)}"
        raise SettingError(setting, f"'{path}' ({error})", accepted) from error


def _load(net: nn.Module, state: dict[str, Tensor], path: Path, setting: str) -> list[str]:
    expected = net.state_dict()
    _check_names(expected, state, path, setting)
    _check_shapes(net, expected, state, path, setting)
    _check_types(expected, state, path, setting)
    notes = _casts(expected, state) + _not_finite(expected, state)
    net.load_state_dict(state)
    return notes


def _casts(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    pairs = Counter((state[name].dtype, tensor.dtype) for name, tensor in expected.items())
    return [
        f"{count} tensors cast from {_short(given)} to {_short(wanted)}"
        for (given, wanted), count in pairs.items()
        if given != wanted
    ]


def _not_finite(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    # As the network will hold them: a double may be too large for its type.
    counts = {
        name: int((~torch.isfinite(state[name].to(tensor.dtype))).sum())
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    }
    bad = [name for name, count in counts.items() if count]
    total = sum(counts.values())
    return [f"{total} values are NaN or infinite, the first in {bad[0]}"] if bad else []


def _check_names(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, setting: str
) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    parts = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if parts:
        given = f"'{path}' ({'; '.join(parts)})"
        raise SettingError(setting, given, "a checkpoint of the same network")


def _check_shapes(
    net: nn.Module,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    path: Path,
    setting: str,
) -> None:
    wrong = [name for name, tensor in expected.items() if state[name].shape != tensor.shape]
    if not wrong:
        return
    heads = classifier_names(net)
    if all(in_any(name, heads) and state[name].ndim for name in wrong):
        found, classes = len(state[wrong[0]]), len(expected[wrong[0]])
        if found != classes:
            given = f"'{path}' (has {found} classes, the data set has {classes})"
            raise SettingError(setting, given, f"a checkpoint with {classes} classes")
    shapes = [f"{n} {_size(state[n])} instead of {_size(expected[n])}" for n in wrong]
    given = f"'{path}' ({len(wrong)} of another shape: {some(shapes)})"
    raise SettingError(setting, given, "a checkpoint of the same network")


def _check_types(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, setting: str
) -> None:
    # Such a cast drops imaginary parts or fractions, as packed or quantised weights would.
    wrong = [
        f"{name} {_short(state[name].dtype)} instead of {_short(tensor.dtype)}"
        for name, tensor in expected.items()
        if not torch.can_cast(state[name].dtype, tensor.dtype)
    ]
    if wrong:
        given = f"'{path}' ({len(wrong)} of another type: {some(wrong)})"
        raise SettingError(setting, given, "a checkpoint of the same network")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
