"""Networks by name: the CIFAR zoo of the KD literature, timm, torchvision or anybody's function.

A plain name is looked up in our registry, then in timm, then in torchvision; ``timm:NAME`` and
``torchvision:NAME`` say which. ``package.module:function`` names a function of one's own. Arguments
may follow any of them: ``timm:vit_tiny_patch16_224?img_size=48&drop_path_rate=0.1``.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from torch import nn

from fskd.errors import FskdError, SettingError
from fskd.raw import parse_yaml
from fskd.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model", "fskd.models")

# What the data and this module say; an argument of the same name would contradict them.
# Weights come by student.init and the like, which stand in a run's key.
SET_ALREADY = (
    "num_classes", "in_channels", "in_chans", "pretrained", "weights", "checkpoint_path",
)  # fmt: skip

OTHERS = "any timm or torchvision name, or package.module:function"


def build(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A freshly initialised network; weights are never downloaded.

    Args:
        name: Name in our registry, ``timm:NAME``, ``torchvision:NAME``, a plain name that timm or
            torchvision knows, or ``package.module:function``. The function is called with
            ``num_classes=`` and, if its signature has it, ``in_channels=``. Further arguments
            follow a question mark, ``?drop_rate=0.1&act_layer=gelu``, with values as in YAML.
        num_classes: K, the number of logits.
        in_channels: Channels of the images. torchvision has no such setting, so the first
            convolution is replaced there when it is not 3.

    Returns:
        The network, on the CPU and in train mode.

    Raises:
        SettingError: If the name is unknown, its library is not installed or refuses it, or the
            function returns something else than a network.

    Example:
        >>> sum(p.numel() for p in build("resnet20", num_classes=10).parameters())
        272474
    """
    name, options = split_arguments(name)
    if name in models.names():
        return _from_zoo(name, num_classes, in_channels, options)
    source, colon, rest = name.partition(":")
    if source in LIBRARIES:
        return _from_library(source, rest, num_classes, in_channels, options)
    if colon:
        return _from_function(source, rest, num_classes, in_channels, options)
    for library in LIBRARIES:
        if _knows(library, name):
            return _from_library(library, name, num_classes, in_channels, options)
    raise SettingError("model", f"'{name}'", _accepted(name))


def split_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """A network's name and the arguments behind its question mark.

    Raises:
        SettingError: If an argument has no name or no value, is there twice or is set already.

    Example:
        >>> split_arguments("timm:vit_tiny_patch16_224?img_size=48&class_token=false")
        ('timm:vit_tiny_patch16_224', {'img_size': 48, 'class_token': False})
    """
    plain, mark, query = name.partition("?")
    options: dict[str, Any] = {}
    for pair in query.split("&") if mark else ():
        key, _, text = pair.partition("=")
        if not key.isidentifier() or not text:
            raise SettingError("model", f"'{name}'", "name?argument=value&argument=value")
        if key in options or key in SET_ALREADY:
            why = "given twice" if key in options else "set already"
            raise SettingError("model", f"'{name}' ({key} is {why})", "each other argument once")
        options[key] = _value(text, name)
    return plain, options


def _value(text: str, name: str) -> Any:
    try:
        value = parse_yaml(text, "its value")
    except FskdError as error:
        raise SettingError("model", f"'{name}' ({error})", "values as in YAML") from None
    try:  # YAML takes 1e-3, which has no point, for text
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _from_zoo(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    build_it = models.get(name)
    if not options:
        return build_it(num_classes=num_classes, in_channels=in_channels)
    try:
        return build_it(num_classes=num_classes, in_channels=in_channels, **options)
    except Exception as error:  # whatever a network does with arguments that it does not expect
        raise _refused(name, options, error) from error


def _refused(name: str, options: Mapping[str, Any], error: Exception) -> SettingError:
    given = f"'{name}' ({_first_line(error)})"
    accepted = f"arguments that it takes, unlike {', '.join(options)}" if options else ""
    return SettingError("model", given, accepted or "another network")


def _accepted(name: str) -> str:
    ours = models.names()
    # timm knows well over a thousand names: its nearest is offered only if ours are far off.
    theirs = (known for library in LIBRARIES for known in _library_names(library))
    near = get_close_matches(name, ours, 1, 0.75) or get_close_matches(name, set(theirs), 1)
    first = f"'{near[0]}' (nearest); known: " if near else "one of "
    return f"{first}{', '.join(ours)}, or {OTHERS}"


def _from_library(
    library: str, name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    setting = f"'{library}:{name}'"
    module = _import_library(library)
    if module is None:
        raise SettingError("model", f"{setting} ({library} cannot be imported)", OTHERS)
    if not _knows(library, name):
        near = get_close_matches(name, _library_names(library), 1, 0.5)
        hint = f"'{library}:{near[0]}' (nearest), or " if near else ""
        raise SettingError("model", setting, f"{hint}another name that {library} knows")
    try:
        return LIBRARIES[library](module, name, num_classes, in_channels, options)
    except Exception as error:  # somebody else's code may fail in any way
        raise _refused(f"{library}:{name}", options, error) from error


def _build_timm(
    timm: ModuleType, name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    size: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    return timm.create_model(name, pretrained=False, **size, **options)


def _build_torchvision(
    torchvision: ModuleType,
    name: str,
    num_classes: int,
    in_channels: int,
    options: Mapping[str, Any],
) -> nn.Module:
    # The auxiliary heads of these two would make the output a tuple in train mode.
    has_heads = name.lower() in ("googlenet", "inception_v3")
    own = {"aux_logits": False, "init_weights": False} if has_heads else {}
    size: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    net = torchvision.models.get_model(name, **size, **{**own, **options})
    if in_channels != 3:
        replace_first_convolution(net, in_channels)
    return net


LIBRARIES: dict[str, Callable[[ModuleType, str, int, int, Mapping[str, Any]], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}


def replace_first_convolution(net: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution by a fresh one of the same settings but other input channels.

    Raises:
        ValueError: If the network has no ungrouped 2-D convolution.
    """
    named = net.named_modules()
    found = (pair for pair in named if isinstance(pair[1], nn.Conv2d) and pair[1].groups == 1)
    name, old = next(found, ("", None))
    if not isinstance(old, nn.Conv2d):
        raise ValueError("it has no first convolution to replace")
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, new)


def _from_function(
    module: str, name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    setting = f"'{module}:{name}'"
    try:
        function = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise TypeError(f"{name} cannot be called")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        accepted = "package.module:function that can be imported"
        raise SettingError("model", f"{setting} ({_first_line(error)})", accepted) from error
    settings: dict[str, Any] = {"num_classes": num_classes, **options}
    if _accepts(function, "in_channels"):
        settings["in_channels"] = in_channels
    try:
        net = function(**settings)
    except Exception as error:  # somebody else's code may fail in any way
        accepted = f"a function that builds a network from {', '.join(settings)}"
        raise SettingError("model", f"{setting} ({_first_line(error)})", accepted) from error
    if not isinstance(net, nn.Module):
        given = f"{setting} (it returned {type(net).__name__})"
        raise SettingError("model", given, "a function that returns a torch.nn.Module")
    return net


def _accepts(function: Callable[..., object], argument: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some built-in callables have no signature
        return False
    kinds = {parameter.kind for parameter in parameters.values()}
    return argument in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _library_names(library: str) -> list[str]:
    module = _import_library(library)
    if module is None:
        return []
    if library == "timm":
        return list(module.list_models())
    return list(module.models.list_models(module=module.models))


def _knows(library: str, name: str) -> bool:
    # timm's names may carry the tag of their weights: resnet18.a1_in1k.
    return name.partition(".")[0] in _library_names(library)


def _import_library(library: str) -> ModuleType | None:
    # On first use: the core works without them, and importing them takes seconds. A torchvision
    # wheel beside a torch build that it was not made for fails with RuntimeError.
    try:
        importlib.import_module(f"{library}.models")
        return importlib.import_module(library)
    except (ImportError, RuntimeError):
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
