"""Which nodes of a traced network are its stem and its stages.

The *stem* is everything before the first block. A block is a module with a forward pass of its own
and at least two convolutions that does not hold the network's first; where no module says so, the
first block begins behind the first map that goes two ways, around a convolution. The tap is the
stem's last map at the resolution of its last convolution, so before pooling. A plain network has no
blocks: there the maps of the first resolution are the stem.

A *stage* is the last map of each resolution at which there is a convolution, shallow to deep and
behind the stem; its *pre* is the input of the activation that gave it, or the stage itself if none
did. Not counted are

- maps inside a block that lowers the resolution, such as the expansion before its strided
  convolution, since the stage ended where the block began;
- maps of one pixel, which come from global pooling or from squeeze and excitation.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations")
# fmt: off
ACTIVATION_FUNCTIONS = frozenset((
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "silu", "gelu", "elu", "elu_",
    "selu", "celu", "mish", "softplus", "hardswish", "hardsigmoid", "hardtanh", "sigmoid",
    "sigmoid_", "tanh", "tanh_",
))
# fmt: on

Resolution = tuple[int, ...]


def find_stages(
    net: nn.Module, tensors: Mapping[Node, Tensor]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Nodes of the stages and of the same maps before their last activation.

    They are in the order of execution; maps of the stem may be among them.

    Args:
        net: The network; targets of the nodes are relative to a module that holds it as ``net``.
        tensors: What each node gave for a probe, in order of execution.
    """
    groups: dict[Resolution, list[Node]] = {}
    for node, size in _maps(tensors).items():
        groups.setdefault(size, []).append(node)
    groups = {size: nodes for size, nodes in groups.items() if has_convolution(net, nodes)}
    inner = _inside_lowering_blocks(net, groups, tensors)
    outer = [[node for node in nodes if node not in inner] for nodes in groups.values()]
    last = {nodes[-1] for nodes in outer if has_convolution(net, nodes)}
    stages, pre = [], []
    for node in (node for node in tensors if node in last):
        while passes_on(net, node):
            node = node.all_input_nodes[0]
        stages.append(node)
        pre.append(node.all_input_nodes[0] if _is_activation(net, node) else node)
    return tuple(stages), tuple(pre)


def find_stem(
    net: nn.Module, tensors: Mapping[Node, Tensor], stages: Sequence[Node]
) -> Node | None:
    """Node of the stem's map; None if there is no convolution before the first block.

    Args:
        net: As for ``find_stages``.
        tensors: As for ``find_stages``.
        stages: What ``find_stages`` gave.
    """
    sizes = _maps(tensors)
    maps = list(sizes)
    convolutions = [number for number, node in enumerate(maps) if has_convolution(net, [node])]
    if not convolutions:
        return None
    end = _first_block(net, maps, convolutions)
    if end is None:
        if len(stages) > 1:
            return stages[0]
        end = [*convolutions, len(maps)][1]
    last = max((number for number in convolutions if number < end), default=None)
    if last is None:
        return None
    stem = [node for node in maps[last:end] if sizes[node] == sizes[maps[last]]][-1]
    while passes_on(net, stem):
        stem = stem.all_input_nodes[0]
    return stem


def _first_block(net: nn.Module, maps: Sequence[Node], convolutions: Sequence[int]) -> int | None:
    """Where the first block begins in ``maps``; None in a plain network."""
    first = maps[convolutions[0]]
    holding = {*_modules_around(first), str(first.target)}
    for number, node in enumerate(maps):
        if number > convolutions[0]:
            paths = set(_modules_around(node)) - holding
            if any(_is_block(net.get_submodule(path)) for path in paths):
                return number
        if number >= convolutions[0]:
            uses = [other for other, user in enumerate(maps) if user in node.users]
            # x * sigmoid(x) goes two ways, too, but is an activation.
            around = range(number + 1, max(uses, default=number) + 1)
            if len(uses) > 1 and any(other in around for other in convolutions):
                return number + 1
    return None


def _is_block(module: nn.Module) -> bool:
    n_convolutions = sum(isinstance(part, _ConvNd) for part in module.modules())
    return n_convolutions > 1 and not isinstance(module, nn.Sequential)


def _maps(tensors: Mapping[Node, Tensor]) -> dict[Node, Resolution]:
    """Resolutions of the maps that the network computes, but for those of a single pixel."""
    return {
        node: tuple(tensor.shape[2:])
        for node, tensor in tensors.items()
        if node.op.startswith("call_") and tensor.dim() == 4 and min(tensor.shape[2:]) > 1
    }


def module_of(net: nn.Module, node: Node) -> nn.Module | None:
    """The module that a node calls; None if it calls something else."""
    if node.op != "call_module":
        return None
    return net.get_submodule(_relative(str(node.target)))


def is_activation_module(module: nn.Module | None) -> bool:
    """Whether a module is an activation of torch or timm, or derived from one."""
    return any(kind.__module__.startswith(ACTIVATION_MODULES) for kind in type(module).__mro__)


def _is_activation(net: nn.Module, node: Node) -> bool:
    return is_activation_module(module_of(net, node)) or name_of(node) in ACTIVATION_FUNCTIONS


def passes_on(net: nn.Module, node: Node) -> bool:
    """Whether a node is an identity, dropout or stochastic depth."""
    is_module = isinstance(module_of(net, node), nn.Identity | _DropoutNd)
    name = name_of(node)
    return is_module or "dropout" in name or name in ("drop_path", "stochastic_depth")


def has_convolution(net: nn.Module, nodes: Sequence[Node]) -> bool:
    """Whether one of the nodes is a convolution or a module that holds one."""
    # A module that is not looked into, as timm declares some blocks, may hold convolutions.
    called = (module for node in nodes if (module := module_of(net, node)) is not None)
    inside = (part for module in called for part in module.modules())
    return any(isinstance(part, _ConvNd) for part in inside) or any(
        name_of(node) == "conv2d" for node in nodes
    )


def name_of(node: Node) -> str:
    """Name of the function or method that a node calls; empty for modules."""
    if node.op == "call_module":
        return ""
    return str(getattr(node.target, "__name__", node.target))


def _inside_lowering_blocks(
    net: nn.Module, groups: Mapping[Resolution, Sequence[Node]], tensors: Mapping[Node, Tensor]
) -> set[Node]:
    """Maps at the input's resolution of blocks that go from one resolution to the next.

    Blocks are modules with a forward pass of their own (a Sequential may be most of the network)
    that do not hold the network's first map.
    """
    maps: dict[str, list[Node]] = {}
    sizes = {node: size for size, nodes in groups.items() for node in nodes}
    for node in (node for node in tensors if node in sizes):
        for path in _modules_around(node):
            maps.setdefault(path, []).append(node)
    first = next((node for node in tensors if node in sizes), None)
    inner: set[Node] = set()
    for path, nodes in maps.items():
        end = sizes[nodes[-1]]
        levels = {sizes[node] for node in nodes}
        is_block = nodes[0] is not first and not isinstance(net.get_submodule(path), nn.Sequential)
        if is_block and len(levels) == 2:
            inner.update(node for node in nodes if sizes[node] != end)
    return inner


def _modules_around(node: Node) -> list[str]:
    """Paths of the modules whose forward pass a node belongs to, without the network itself."""
    stack = node.meta.get("nn_module_stack", {})
    paths = (_relative(str(entry[0])) for entry in stack.values())
    return [path for path in dict.fromkeys(paths) if path]


def _relative(path: str) -> str:
    return path.removeprefix("net").removeprefix(".")
