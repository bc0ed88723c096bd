"""Which batch normalisation made a map of a traced network."""

from torch import nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _BatchNorm

from fskd.models.stages import has_convolution, module_of, name_of, passes_on
from fskd.models.trace import batch_norm_alone

SUMS = ("add", "add_", "iadd")


def find_norm(net: nn.Module, node: Node) -> nn.Module | None:
    """The batch normalisation whose output a map is, or of the residual branch that ends in it.

    Args:
        net: The network; targets of the nodes are relative to a module that holds it as ``net``.
        node: The map, before its activation.
    """
    while True:
        module = module_of(net, node)
        inputs = node.all_input_nodes
        if isinstance(module, _BatchNorm):
            return module
        if node.target is batch_norm_alone:
            return net.get_submodule(str(inputs[0].target).removeprefix("net."))
        if passes_on(net, node):
            node = inputs[0]
        elif name_of(node) in SUMS and len(inputs) == 2:
            node = _residual_branch(net, inputs[0], inputs[1])
        else:
            return None


def _residual_branch(net: nn.Module, left: Node, right: Node) -> Node:
    """The summand that more convolutions went into; the other is the shortcut."""
    of_left, of_right = _ancestors(left), _ancestors(right)
    n_left = sum(has_convolution(net, [node]) for node in of_left - of_right)
    n_right = sum(has_convolution(net, [node]) for node in of_right - of_left)
    return left if n_left > n_right else right


def _ancestors(node: Node) -> set[Node]:
    found, rest = {node}, [node]
    while rest:
        new = [source for source in rest.pop().all_input_nodes if source not in found]
        found.update(new)
        rest += new
    return found
