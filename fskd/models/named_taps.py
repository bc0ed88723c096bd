"""Taps of modules by name, in networks that cannot be traced or to choose the maps oneself.

Hooks listen during one forward pass and are removed after it, so a network is as it was before:
copies, averages and pickles of it know nothing of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from math import isqrt
from typing import NamedTuple

from torch import Tensor, nn

from fskd.errors import SettingError

# Class, distillation and register tokens before those of the image.
MOST_PREFIX_TOKENS = 8


class Heard(NamedTuple):
    """What a forward pass gave.

    Attributes:
        output: Whatever the network returned.
        maps: Outputs of the named modules as maps, each (rows, C, H, W).
        embedding: Input of the classifier, (rows, D); None if it was not listened to.
    """

    output: object
    maps: tuple[Tensor, ...]
    embedding: Tensor | None


def known_names(net: nn.Module, names: Sequence[str] | str) -> tuple[str, ...]:
    """The names, if the network has modules of these names.

    Raises:
        SettingError: If it has not, or if a name is there twice.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    for name in names:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 5, 0.4) or known[:5])
            accepted = f"modules of {type(net).__name__}, such as {near}" if near else "none"
            raise SettingError("taps", f"'{name}'", accepted)
    if len(set(names)) < len(names):
        raise SettingError("taps", list(names), "each name once")
    return names


def listen(
    net: nn.Module, x: Tensor, names: Sequence[str], classifier: nn.Module | None = None
) -> Heard:
    """Runs a network and takes the outputs of some of its modules as maps.

    Args:
        net: The network.
        x: Images (rows, C, H, W).
        names: Names of modules that are called once in a forward pass.
        classifier: The module whose input is the embedding, if that is wanted.

    Raises:
        SettingError: If a module was not called, or more than once, or gave no map.
    """
    modules = dict(net.named_modules(remove_duplicate=False))
    outputs: dict[str, list[object]] = {name: [] for name in names}
    inputs: list[object] = []
    with ExitStack() as hooks:
        for name, found in outputs.items():
            hooks.callback(modules[name].register_forward_hook(_keeper(found)).remove)
        if classifier is not None:
            handle = classifier.register_forward_pre_hook(
                lambda _, args, kwargs: inputs.append(_kept((*args, *kwargs.values()))),
                with_kwargs=True,
            )
            hooks.callback(handle.remove)
        output = net(x)
    maps = tuple(as_map(net, name, _once(name, found)) for name, found in outputs.items())
    if classifier is None:
        return Heard(output, maps, None)
    embedding = _once("the classifier", inputs)
    if not isinstance(embedding, Tensor):
        given = f"'{type(net).__name__}' (its classifier is not given a tensor)"
        raise SettingError("model", given, "a network whose classifier takes the embedding")
    return Heard(output, maps, embedding.flatten(1))


def as_map(net: nn.Module, name: str, value: object) -> Tensor:
    """A module's output as a map (rows, C, H, W).

    Tokens (rows, T, D) lose those before the image's and are laid out as their grid, maps whose
    channels come last are turned, and vectors are maps of one pixel.

    Args:
        net: The network, which may say how many tokens come first and what its grid is.
        name: The module's name, for the error.
        value: Its output.

    Raises:
        SettingError: If it is none of these.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        shape = tuple(value.shape)
        if len(shape) == 4:
            channels_last = shape[1] == shape[2] != shape[3]
            return value.permute(0, 3, 1, 2) if channels_last else value
        if len(shape) == 2:
            return value[:, :, None, None]
        grid = _grid(net, shape[1]) if len(shape) == 3 else None
        if grid is not None:
            prefix, height, width = grid
            return value[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
    given = f"'{name}' (its output is {contents(value)})"
    raise SettingError("taps", given, "a module that gives a map, a square of tokens or a vector")


def contents(value: object) -> str:
    """What a network or a module returned, in a few words.

    Example:
        >>> import torch
        >>> contents((torch.zeros(2, 10), None))
        'a tuple of 2 (2x10), NoneType'
    """
    if isinstance(value, Tensor):
        return f"a {'x'.join(map(str, value.shape))} tensor of {str(value.dtype)[6:]}"
    if isinstance(value, Mapping):
        parts = [f"{key} {_short(part)}" for key, part in value.items()]
    elif isinstance(value, tuple | list):
        parts = [_short(part) for part in value]
    else:
        return f"a {type(value).__name__}"
    kind = " tensors" if all("(" in part for part in parts) else ""
    shown = ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
    return f"a {type(value).__name__} of {len(parts)}{kind} {shown}"


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"({'x'.join(map(str, value.shape))})"
    return type(value).__name__


def _grid(net: nn.Module, tokens: int) -> tuple[int, int, int] | None:
    """Tokens before those of the image, and the grid of these."""
    own = getattr(net, "num_prefix_tokens", None)
    prefixes = ([own] if isinstance(own, int) else []) + list(range(MOST_PREFIX_TOKENS + 1))
    said = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if isinstance(said, tuple) and len(said) == 2:
        for prefix in prefixes[:2]:
            if tokens - prefix == said[0] * said[1]:
                return prefix, *said
    for prefix in prefixes:
        side = isqrt(max(tokens - prefix, 0))
        if 0 < side * side == tokens - prefix:
            return prefix, side, side
    return None


def _kept(value: object) -> object:
    """The first tensor of an output, safe from what later operations write into it."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        value = next((part for part in value if isinstance(part, Tensor)), value)
    return value.clone() if isinstance(value, Tensor) else value


def _keeper(found: list[object]) -> Callable[..., None]:
    return lambda module, args, output: found.append(_kept(output))


def _once(name: str, found: list[object]) -> object:
    if len(found) == 1:
        return found[0]
    times = f"it was called {len(found)} times in one pass" if found else "it was not called"
    raise SettingError("taps", f"'{name}' ({times})", "modules that are called once in each pass")
