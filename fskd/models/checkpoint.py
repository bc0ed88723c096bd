"""Weights of one network on disk: written as safetensors, read also from published ``.pth`` files.

Reading never runs code that a file brings along.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.results.store import replacing

WRAPPERS = ("model", "state_dict", "net")
N_NAMED = 3


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Writes a network's state dict as safetensors; the file is complete or absent.

    Args:
        net: The network.
        path: The file; its folder is made if need be, a file of that name is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in net.state_dict().items()
    }
    with replacing(path) as temporary:
        safetensors.torch.save_file(state, temporary)


def load_weights(net: nn.Module, path: str | Path, setting: str = "teacher.checkpoint") -> None:
    """Loads all weights of a network from a file, or changes nothing and says why.

    Args:
        net: The network; every parameter and buffer must be in the file with its shape.
        path: A ``.safetensors`` file, or a ``.pth`` or ``.pt`` file that holds a state dict, bare
            or under ``model``, ``state_dict`` or ``net``, with or without ``module.`` prefixes.
        setting: Name of the setting that the path came from, for messages.

    Raises:
        SettingError: If the file is missing, damaged, would run code, or is of another network or
            another number of classes.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingError(setting, f"'{path}' (no such file)", "a checkpoint file")
    state = _state_dict(_read(path, setting), path, setting)
    expected = net.state_dict()
    _check_names(expected, state, path, setting)
    _check_shapes(net, expected, state, path, setting)
    net.load_state_dict(state)


def _read(path: Path, setting: str) -> Any:
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    if path.suffix not in readers:
        raise SettingError(setting, f"'{path}'", "a .safetensors, .pth or .pt file")
    try:
        return readers[path.suffix](path)
    except UnpicklingError as error:
        if "global" not in str(error).lower():
            reason = "damaged, or not a checkpoint"
        else:
            reason = "it holds objects other than tensors, and reading them could run code"
        raise _unreadable(path, setting, reason) from error
    except PermissionError as error:
        raise _unreadable(path, setting, "permission denied") from error
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise _unreadable(path, setting, "damaged, or not a checkpoint") from error


def _unreadable(path: Path, setting: str, reason: str) -> SettingError:
    return SettingError(setting, f"'{path}' ({reason})", "a file of weights that can be read")


def _read_safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path)


def _read_torch(path: Path) -> Any:
    # Training scripts keep their options beside the weights; a Namespace only holds attributes.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(content: Any, path: Path, setting: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrapped:
            break
        content = wrapped[0]
    is_state = isinstance(content, Mapping) and len(content) > 0
    if not is_state or not all(isinstance(value, Tensor) for value in content.values()):
        accepted = f"a state dict of tensors, bare or under {', '.join(WRAPPERS)}"
        raise SettingError(setting, f"'{path}' (no state dict)", accepted)
    prefix = "module."
    if all(str(name).startswith(prefix) for name in content):
        return {str(name)[len(prefix) :]: value for name, value in content.items()}
    return {str(name): value for name, value in content.items()}


def _check_names(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, setting: str
) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    parts = [
        f"{len(names)} {kind}: {_some(names)}"
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
    classifier = _classifier_name(net)
    if all(name.startswith(f"{classifier}.") for name in wrong):
        found, classes = len(state[wrong[0]]), len(expected[wrong[0]])
        if found != classes:
            given = f"'{path}' (has {found} classes, the data set has {classes})"
            raise SettingError(setting, given, f"a checkpoint with {classes} classes")
    shapes = [f"{n} {_size(state[n])} instead of {_size(expected[n])}" for n in wrong]
    given = f"'{path}' ({len(wrong)} of another shape: {_some(shapes)})"
    raise SettingError(setting, given, "a checkpoint of the same network")


def _classifier_name(net: nn.Module) -> str:
    name = getattr(net, "classifier_name", None)
    if isinstance(name, str):
        return name
    linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else ""


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = ", ..." if len(listed) > N_NAMED else ""
    return ", ".join(listed[:N_NAMED]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
