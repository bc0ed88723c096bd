"""Sections: the part of a network behind one of its maps, up to another or to the logits.

Networks of the zoo are cut by what they say of themselves (``Staged``), others in their trace.
A section shares the modules that it runs with the network, and holds no others. Make it when the
network is on its device: a parameter or buffer that is shared on its own does not follow.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.cuts import After, bounds, cut_graph
from fskd.models.modes import modes_kept
from fskd.models.restricted import Restricted
from fskd.models.staged import Staged
from fskd.models.taps import LOGITS, FeatureNet
from fskd.models.trace import TraceError
from fskd.types import Outputs


class Section(nn.Module):
    """Part of a network; made by ``section``.

    Its state dict is that part of the ``FeatureNet``'s, under the same names.

    Args:
        run: Computes the outputs from this module, which holds the network's parts as ``net``,
            and its input.
    """

    def __init__(self, run: Callable[[nn.Module, Tensor], Outputs]) -> None:
        super().__init__()
        self._run = run

    def forward(self, x: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        """Outputs for the map (rows, C_l, H_l, W_l) that the section is fed with, or for images.

        ``read`` is there so that a section is called like a network; all that it has is given.
        """
        return self._run(self, x)


def section(net: FeatureNet, after: After, upto: int | None, size: tuple[int, ...]) -> nn.Module:
    """The part of a network between two maps, with the network's own modules.

    Args:
        net: The network.
        after: Where it begins: None at the images, ``"stem"`` behind the stem's map, i behind
            ``stages[i]``, negative ones counted from the end.
        upto: Where it ends: None at the logits, j at ``stages[j]``.
        size: (C, H, W) of the images.

    Returns:
        A module that gives ``Outputs`` of ``logits`` and ``embedding``, or of ``stages=(map,)``
        and, if it is computed before the section ends, ``pre=(map,)``.

    Raises:
        SettingError: If there is no such map or nothing between them, or if the network cannot be
            cut there.

    Example:
        >>> from fskd.models.catalog import build
        >>> net = FeatureNet(build("cnn_tiny", num_classes=10, in_channels=1)).eval()
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> out = net(x, frozenset({"logits", "stages"}))
        >>> behind = section(net, after=0, upto=None, size=(1, 8, 8))
        >>> torch.equal(behind(out.stages[0]).logits, out.logits)
        True
    """
    if isinstance(net, Restricted):
        part = section(net.whole, after, upto, size)
        return part if upto is not None else Restricted(cast(FeatureNet, part), net.classes)
    if net.names:
        given = f"'{type(net.net).__name__}' (it cannot be cut where taps= names its modules)"
        raise SettingError("model", given, "a network without taps= for this method")
    first = next(net.parameters(), torch.empty(0))
    probe = torch.zeros((2, *size), dtype=first.dtype, device=first.device)
    if isinstance(net.net, Staged):
        return _of_staged(net, net.net, after, upto, probe)
    return _of_trace(net, after, upto, probe)


def reinitialised(net: FeatureNet, seed: int) -> FeatureNet:
    """A copy of a network whose parameters are drawn anew by its modules' ``reset_parameters``.

    Raises:
        SettingError: If a module has parameters of its own but no ``reset_parameters``.
    """
    twin = copy.deepcopy(net)
    devices = {parameter.device for parameter in net.parameters()}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        torch.manual_seed(seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                given = f"'{type(net.net).__name__}' ('{type(module).__name__}' in it cannot)"
                accepted = "a network whose modules with parameters all have reset_parameters()"
                raise SettingError("model", given, accepted)
    return twin


def _of_staged(
    net: FeatureNet, staged: Staged, after: After, upto: int | None, probe: Tensor
) -> nn.Module:
    first, last = bounds(after, upto, staged.n_stages)
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(f"net.{path}"))
        for path, module in staged.named_modules()
        if path and (not list(module.children()) or list(module.parameters(recurse=False)))
    ]
    with torch.no_grad(), modes_kept(staged):
        staged.eval()
        try:
            x = probe if first == 0 else _run_parts(staged, 0, first - 1, probe)[0]
            called.clear()
            _run_parts(staged, first, last, x)
        finally:
            for hook in hooks:
                hook.remove()
    return _holding(
        Section(lambda owner, x: _run_parts(cast(Staged, owner.net), first, last, x)[1]),
        net,
        called,
    )


def _run_parts(net: Staged, first: int, last: int, x: Tensor) -> tuple[Tensor, Outputs]:
    """The map behind the last part (or the logits) and the outputs."""
    out = Outputs()
    for part in range(first, last + 1):
        if part == 0:
            x = net.stem(x)
        elif part <= net.n_stages:
            x, before = net.stage(part - 1, x)
            out = Outputs(stages=(x,), pre=() if before is None else (before,))
        else:
            embedding, x = net.head(x)
            out = Outputs(x, embedding)
    return x, out


def _of_trace(net: FeatureNet, after: After, upto: int | None, probe: Tensor) -> nn.Module:
    name = f"'{type(net.net).__name__}'"
    if hasattr(net.net, "taps"):
        accepted = "a network without a taps(x) method, or one derived from fskd's Staged"
        raise SettingError("model", f"{name} (it cannot be cut)", accepted)
    cuts = {}
    try:
        for training in (True, False):
            cuts[training] = cut_graph(net.net, net.tap_graph(probe, training), after, upto)
    except TraceError as error:
        accepted = "a network that torch.fx can trace, cut where nothing else leads past"
        raise SettingError("model", f"{name} (it cannot be cut: {error})", accepted) from error
    reads = LOGITS if upto is None else frozenset({"stages", "pre"})
    if upto is None and cuts[False].embedding is not None:
        reads |= {"embedding"}
    used = {
        _holder(net, str(node.target))
        for cut in cuts.values()
        for node in cut.graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    runs = {training: cut.compile(net, reads) for training, cut in cuts.items()}

    def run(owner: nn.Module, x: Tensor) -> Outputs:
        # As the network may be switched without the section, its modules tell the mode.
        leaves = (module for module in owner.modules() if not module._modules)
        return runs[any(module.training for module in leaves)](owner, x)

    return _holding(Section(run), net, used)


def _holder(owner: nn.Module, path: str) -> str:
    """The module that a parameter or buffer belongs to, if it has no parts; else the path."""
    parent = path.rpartition(".")[0]
    is_whole = parent and not owner.get_submodule(parent)._modules
    return parent if is_whole else path


def _holding(part: nn.Module, source: nn.Module, paths: Iterable[str]) -> Any:
    """Fills a module with what is at some paths of another.

    The modules on the way become shells, in which None stands for those that are left out, so that
    positions in lists stay.
    """
    below: dict[str, set[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        below.setdefault(name, set()).add(rest)
    part._parameters = {n: p for n, p in source._parameters.items() if n in below}
    part._buffers = {n: b for n, b in source._buffers.items() if n in below}
    part._non_persistent_buffers_set = source._non_persistent_buffers_set & set(below)
    part._modules = {name: None for name in source._modules}
    for name, child in source._modules.items():
        if child is not None and name in below:
            whole = "" in below[name]
            part._modules[name] = child if whole else _holding(copy.copy(child), child, below[name])
    return part
