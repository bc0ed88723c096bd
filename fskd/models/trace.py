"""Taps of networks that were not written for it, found in a ``torch.fx`` trace.

The network is traced symbolically, once for train and once for eval mode, because functional
dropout and stochastic depth are fixed by the trace. A probe image then tells the shape of every
map, and which maps a later in-place operation overwrites: those are copied before they are
returned.

Stages and pre-activations are described in ``fskd.models.stages``; the embedding is the input of
the last linear layer, flattened.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn.modules.dropout import _DropoutNd

from fskd.models.modes import modes_kept
from fskd.models.stages import find_stages, find_stem, is_activation_module, module_of
from fskd.types import Outputs

# At this size the resolutions of networks that halve the image five times are all different and
# none is a single pixel. Networks that accept one size only are probed at that size.
PROBE_SIZE = 128
PROBE_ROWS = 2


class TraceError(RuntimeError):
    """The network cannot be traced, or a tap cannot be found in it; the message says why."""


class TapGraph(NamedTuple):
    """A traced network and its taps.

    Attributes:
        graph: The computation; targets are relative to a module that holds the network as ``net``.
        logits: Node of the output.
        embedding: Input of the last linear layer; None if no linear layer gives the logits.
        stem: Node of the stem; None if there is none.
        stages: Nodes of the stages, shallow to deep.
        pre: Nodes of the same maps before their last activation.
        overwritten: Taps that a later operation changes in place.
        flat: Whether the embedding is (rows, D) already.
    """

    graph: fx.Graph
    logits: Node
    embedding: Node | None
    stem: Node | None
    stages: tuple[Node, ...]
    pre: tuple[Node, ...]
    overwritten: frozenset[Node]
    flat: bool

    def compile(self, owner: nn.Module, read: frozenset[str]) -> Callable[..., Outputs]:
        """A function of (owner, images) that computes the taps in ``read``.

        It holds no reference to a module or parameter: they are looked up in the owner that is
        passed, so that copies of a network and devices need no attention.

        Args:
            owner: A module that holds the traced network as ``net``.
            read: Names of taps.

        Raises:
            TraceError: If the embedding or the stem is read and there is none.
        """
        if "embedding" in read and self.embedding is None:
            raise TraceError("its logits do not come from a torch.nn.Linear layer")
        if "stem" in read and self.stem is None:
            raise TraceError("it has no convolution before its first block")
        graph = fx.Graph()
        copies: dict[Node, Node] = {}
        graph.graph_copy(self.graph, copies)

        def tap(node: Node) -> Node:
            if node in self.overwritten:
                with graph.inserting_after(copies[node]):
                    return graph.call_method("clone", (copies[node],))
            return copies[node]

        taps: dict[str, Any] = {
            name: tuple(map(tap, getattr(self, name))) for name in ("stages", "pre") if name in read
        }
        if "logits" in read:
            taps["logits"] = copies[self.logits]
        if "stem" in read and self.stem is not None:
            taps["stem"] = tap(self.stem)
        if "embedding" in read and self.embedding is not None:
            embedding = tap(self.embedding)
            taps["embedding"] = (
                embedding if self.flat else graph.call_method("flatten", (embedding, 1))
            )
        graph.output(taps)
        forward = type(fx.GraphModule(owner, graph)).forward
        return lambda owner, x: Outputs(**forward(owner, x))


class _Whole(nn.Module):
    """Calls the network with images only, so that optional arguments keep their defaults."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Tracer(fx.Tracer):
    """Tracer that keeps buffers symbolic and looks into timm's fused norm and activation."""

    # Otherwise arithmetic on buffers would be done once, while tracing.
    proxy_buffer_attributes = True

    def __init__(self, net: nn.Module) -> None:
        self.leaves: tuple[type, ...] = ()
        self.fused: tuple[type, ...] = ()
        functions: tuple[Callable[..., Any], ...] = ()
        if any(type(module).__module__.startswith("timm.") for module in net.modules()):
            from timm import layers

            self.leaves = tuple(layers.get_notrace_modules())
            self.fused = (layers.BatchNormAct2d,)
            functions = tuple(layers.get_notrace_functions())
        super().__init__(autowrap_functions=functions)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's own linear layer and activations are leaves like torch's, to be recognised.
        known = type(m) in self.leaves or isinstance(m, nn.Linear) or is_activation_module(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not isinstance(m, self.fused):
            return super().call_module(m, forward, args, kwargs)
        module = self.create_proxy("get_attr", self.path_of_module(m), (), {})
        out = self.create_proxy("call_function", batch_norm_alone, (module, *args), kwargs)
        return m.act(m.drop(out))  # type: ignore[operator]


def batch_norm_alone(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The normalisation of a module that also applies an activation."""
    return nn.BatchNorm2d.forward(module, x)


class _Probe(fx.Interpreter):
    """Runs a graph and keeps every tensor, with its version at the time it was made."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.tensors: dict[Node, Tensor] = {}
        self.versions: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.tensors[n], self.versions[n] = out, out._version
        return out

    def overwritten(self, node: Node) -> bool:
        return self.tensors[node]._version > self.versions[node]


def trace(owner: nn.Module, net: nn.Module, x: Tensor, training: bool) -> TapGraph:
    """Traces a network in one mode and finds its taps.

    Modes of the network's modules, its buffers and the random state are as before afterwards.

    Args:
        owner: The module that holds the network as ``net``; constants of the trace become
            buffers of it that are not saved.
        net: The network.
        x: Images that it accepts, (rows, C, H, W); only shape, dtype and device are used.
        training: The mode.

    Raises:
        TraceError: If the network cannot be traced or its output is not one tensor.
    """
    graph = symbolic(net, training, owner)
    with torch.inference_mode(False), torch.no_grad(), _undisturbed(net, x.device):
        for module in net.modules():
            # Dropout in place is an operation like others in the graph that trains; it is told
            # by running it. Statistics are not updated in either mode.
            module.training = training and isinstance(module, _DropoutNd)
        probe = _run_probe(owner, graph, x)
    return _find_taps(net, graph, probe)


def symbolic(net: nn.Module, training: bool, owner: nn.Module | None = None) -> fx.Graph:
    """The graph of a network in one mode; see ``trace``.

    Raises:
        TraceError: If the network cannot be traced.
    """
    whole = _Whole(net)
    with modes_kept(net):
        net.train(training)
        try:
            graph = _Tracer(net).trace(whole)
        except Exception as error:  # whatever a forward pass does with symbols that it cannot
            raise TraceError(first_line(error)) from error
    if owner is not None:
        _adopt_constants(owner, whole, graph, "train" if training else "eval")
    return graph


def _adopt_constants(owner: nn.Module, whole: nn.Module, graph: fx.Graph, mode: str) -> None:
    """Makes tensors that the forward pass created while traced follow the owner's device."""
    for node in graph.nodes:
        if node.op == "get_attr" and not node.target.startswith("net."):
            name = f"_{mode}{node.target}"
            owner.register_buffer(name, getattr(whole, node.target), persistent=False)
            node.target = name


def last_linear(net: nn.Module) -> nn.Linear | None:
    """The last linear layer that the forward pass calls; None if there is none.

    Of a network that cannot be traced, the last one that was registered.
    """
    try:
        nodes = symbolic(net, training=False).nodes
        called = [module_of(net, node) for node in nodes]
    except TraceError:
        called = list(net.modules())
    linears = [module for module in called if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def first_line(error: Exception) -> str:
    """First line of an error's message, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def _undisturbed(net: nn.Module, device: torch.device) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    devices = [device] if device.type == "cuda" else []
    with modes_kept(net), torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for buffer, value in buffers:
                # Writing only where needed: a pending backward pass may have saved the buffer.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _run_probe(owner: nn.Module, graph: fx.Graph, x: Tensor) -> _Probe:
    rest = tuple(x.shape[1:])
    enlarged = (*rest[:1], *(max(PROBE_SIZE, size) for size in rest[1:]))
    for size in (enlarged, rest):
        probe = _Probe(owner, graph)
        try:
            probe.run(torch.zeros((PROBE_ROWS, *size), dtype=x.dtype, device=x.device))
        except Exception as error:  # it may accept one size only
            if size == rest:
                raise TraceError(first_line(error)) from error
        else:
            return probe
    raise TraceError("it was not run")


def _find_taps(net: nn.Module, graph: fx.Graph, probe: _Probe) -> TapGraph:
    logits = next(node for node in graph.nodes if node.op == "output").args[0]
    if logits not in probe.tensors:
        raise TraceError("its forward pass does not return one tensor")
    embedding = None
    for node in graph.nodes:
        ends = isinstance(module_of(net, node), nn.Linear)
        if ends and probe.tensors[node].shape == probe.tensors[logits].shape:
            embedding = node.all_input_nodes[0]
    stages, pre = find_stages(net, probe.tensors)
    stem = find_stem(net, probe.tensors, stages)
    if stem is not None:
        of_stem = set(itertools.takewhile(lambda node: node is not stem, graph.nodes)) | {stem}
        n_skipped = sum(node in of_stem for node in stages)
        stages, pre = stages[n_skipped:], pre[n_skipped:]
    taps = {node for node in (embedding, stem, *stages, *pre) if node is not None}
    return TapGraph(
        graph,
        logits,
        embedding,
        stem,
        stages,
        pre,
        frozenset(node for node in taps if probe.overwritten(node)),
        embedding is None or probe.tensors[embedding].dim() == 2,
    )
