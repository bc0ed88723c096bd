"""Networks of others: what cannot be used is refused, and what is used can be put back.

A network is trained in float32. ``format_of`` keeps in which precision, memory format and mode it
was given, and ``restore`` puts it back into these.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fskd.errors import SettingError

# Hooks that keep a computed weight as a plain attribute, with which no copy can be made.
OLD_HOOKS = {
    "torch.nn.utils.weight_norm": "torch.nn.utils.parametrizations.weight_norm in its place",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.parametrizations.spectral_norm in its place",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove called on its modules",
}
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes")
WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


class TensorFormat(NamedTuple):
    """How one parameter or buffer lies in memory."""

    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]
    requires_grad: bool


class Format(NamedTuple):
    """How a network was given.

    Attributes:
        tensors: Format of each parameter and buffer, by name.
        modes: Whether each module is in train mode, by name.
    """

    tensors: dict[str, TensorFormat]
    modes: dict[str, bool]


def make_usable(net: nn.Module, setting: str, trains: bool | None = None) -> list[str]:
    """Casts the parameters of a network to float32, where they are something else.

    Args:
        net: The network, changed in place.
        setting: Where it was given, ``student`` or ``teacher``.
        trains: Whether it will be trained; if None, students are.

    Returns:
        What a user should know of it, one line each.

    Raises:
        SettingError: If it is of a kind that cannot be used.
    """
    trains = setting == "student" if trains is None else trains
    check_kind(net, setting, trains)
    notes = _cast(net)
    parameters = list(net.parameters())
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if trains and frozen:
        if frozen == len(parameters):
            value = f"{_name(net)} (none of its {frozen} parameters has requires_grad)"
            raise SettingError(setting, value, "a network with parameters to train")
        notes.append(f"{frozen} of {len(parameters)} parameters are frozen and stay as they are")
    bad = sum(not bool(parameter.isfinite().all()) for parameter in parameters)
    if bad:
        notes.append(f"{bad} of {len(parameters)} parameters hold NaN or infinity")
    return notes


def check_kind(net: nn.Module, setting: str, trains: bool) -> None:
    """SettingError if a network is of a kind that cannot be used; nothing is changed or copied."""
    for module in net.modules():
        refusal = _wrapped(module) or (_scripted(module) if trains else None)
        refusal = refusal or (_with_state(module) if trains else None)
        refusal = refusal or _quantised(module) or _without_values(module) or _uncopyable(module)
        if refusal is not None:
            why, accepted = refusal
            raise SettingError(setting, f"{_name(net)} ({why})", accepted)


def check_rows(net: nn.Module, size: tuple[int, ...], rows: int, setting: str) -> None:
    """SettingError if batch norm cannot train on so few rows; the network stays as it is.

    Args:
        net: The network.
        size: (C, H, W) of the images.
        rows: Rows of the smallest batch; more than one always suffice.
        setting: Where the network was given.
    """
    if rows != 1:
        return
    first = next(net.parameters(), torch.empty(0))
    devices = [first.device] if first.device.type == "cuda" else []
    probe = torch.zeros((1, *size), dtype=first.dtype, device=first.device)
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            copy.deepcopy(net).train()(probe)
        except Exception as error:  # what else may go wrong is found by who looks for it
            if "more than 1 value per channel" in str(error):
                given = f"1 (batch norm of the {setting} {_name(net)} cannot take one row)"
                raise SettingError("optim.batch_size", given, "at least 2") from None


def format_of(net: nn.Module) -> Format:
    """The precision, device, memory format and mode of every part of a network.

    Example:
        >>> net = nn.Conv2d(3, 4, 3).half().eval()
        >>> given = format_of(net)
        >>> restore(net.float().train(), given)
        >>> net.weight.dtype, net.training
        (torch.float16, False)
    """
    tensors = {
        name: TensorFormat(value.dtype, value.device, value.stride(), value.requires_grad)
        for name, value in _tensors(net).items()
    }
    return Format(tensors, {name: module.training for name, module in net.named_modules()})


def restore(net: nn.Module, given: Format) -> None:
    """Puts a network back into its format, in place: the parameters stay the same objects.

    Gradients are dropped, as they would be of another format.
    """
    for name, value in _tensors(net).items():
        was = given.tensors[name]
        if (value.dtype, value.device, value.stride()) != was[:3]:
            value.grad = None
            with torch.no_grad():
                value.data = _formatted(value, was)
        if value.requires_grad != was.requires_grad:
            value.requires_grad_(was.requires_grad)
    for name, module in net.named_modules():
        module.training = given.modes[name]


def _formatted(value: Tensor, was: TensorFormat) -> Tensor:
    moved = value.detach().to(was.device, was.dtype)
    if moved.stride() == was.stride or 0 in was.stride:  # a tensor expanded along an axis
        return moved
    laid = torch.empty_strided(value.shape, was.stride, dtype=was.dtype, device=was.device)
    return laid.copy_(moved)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _cast(net: nn.Module) -> list[str]:
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()} - {torch.float32}
    if not dtypes:
        return []
    net.float()
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return [f"parameters cast from {names} to float32"]


def _wrapped(module: nn.Module) -> tuple[str, str] | None:
    kind = type(module).__name__
    if kind in WRAPPERS and type(module).__module__.startswith("torch."):
        return f"{kind} around a network", "its .module"
    return None


def _scripted(module: nn.Module) -> tuple[str, str] | None:
    # A traced one keeps the mode in which it was traced, and a loaded one does not say which it is.
    if isinstance(module, torch.jit.ScriptModule):
        return "a torch.jit module, whose mode may be fixed", "the nn.Module it was traced from"
    return None


def _with_state(module: nn.Module) -> tuple[str, str] | None:
    # It could be neither saved with the weights nor loaded with them.
    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    kind = type(module).__name__
    return f"{kind} keeps an extra state besides its weights", "one whose state is in its buffers"


def _quantised(module: nn.Module) -> tuple[str, str] | None:
    kinds = [type(module), *map(type, module.parameters(recurse=False))]
    small = [
        str(value.dtype)
        for value in module.parameters(recurse=False)
        if value.dtype.itemsize == 1 and value.dtype != torch.bool
    ]
    if small or any(kind.__module__.startswith(QUANTISED) for kind in kinds):
        what = small[0] if small else kinds[0].__name__
        return f"quantised: {what}", "the network before it was quantised"
    return None


def _without_values(module: nn.Module) -> tuple[str, str] | None:
    for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if is_lazy(value):
            kind = type(module).__name__
            return f"the shape of its {kind} is not known yet", "it, once it was run on images"
        if value.is_meta:
            return "parameters on the meta device have no values", "a network with weights"
    return None


def _uncopyable(module: nn.Module) -> tuple[str, str] | None:
    for hook in module._forward_pre_hooks.values():
        accepted = OLD_HOOKS.get(type(hook).__module__)
        if accepted is not None:
            kind = type(hook).__name__
            return f"{kind} of {type(hook).__module__} makes copies impossible", accepted
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            what = f"{type(module).__name__} keeps a computed tensor as .{name}"
            return (
                f"{what}, so that it cannot be copied",
                "one without, such as before its first use",
            )
    return None


def _name(net: nn.Module) -> str:
    return f"'{type(net).__name__}'"
