"""Where a section of a network begins and ends, and the trace between."""

from collections.abc import Iterable
from typing import Literal

from torch import fx, nn
from torch.fx.node import Node

from fskd.errors import SettingError
from fskd.models.stages import module_of, name_of
from fskd.models.trace import TapGraph, TraceError

After = int | Literal["stem"] | None


def bounds(after: After, upto: int | None, n_stages: int) -> tuple[int, int]:
    """First and last part to run: 0 is the stem, i + 1 is stage i, ``n_stages`` + 1 is the head.

    Raises:
        SettingError: If there is no such stage or nothing in between.
    """
    if isinstance(after, str) and after != "stem":
        raise SettingError("section.after", f"'{after}'", "'stem', the number of a stage or None")
    first = 0 if after is None else 1
    if isinstance(after, int):
        first = _position("after", after, n_stages) + 2
    last = n_stages + 1 if upto is None else _position("upto", upto, n_stages) + 1
    if first > last:
        raise SettingError("section.upto", upto, f"a stage behind stage {after}")
    return first, last


def _position(setting: str, index: int, n_stages: int) -> int:
    if not -n_stages <= index < n_stages:
        accepted = f"{-n_stages}..{n_stages - 1}, as the network has {n_stages} stages"
        raise SettingError(f"section.{setting}", index, accepted)
    return index % n_stages


def cut_graph(net: nn.Module, taps: TapGraph, after: After, upto: int | None) -> TapGraph:
    """The graph of a section as a graph of its own, without what it does not need.

    Raises:
        SettingError: As for ``bounds``.
        TraceError: If there is no stem to begin behind, or another way leads around the cut.
    """
    n_stages = len(taps.stages)
    first, last = bounds(after, upto, n_stages)
    images = next(node for node in taps.graph.nodes if node.op == "placeholder")
    start = (images, taps.stem, *taps.stages)[first]
    if start is None:
        raise TraceError("it has no convolution before its first block")
    end = taps.logits if upto is None else taps.stages[last - 1]
    needed = _between(start, end, images)
    needed |= {node for node in taps.graph.nodes if _writes_to(net, node, needed)}
    graph = fx.Graph()
    x = graph.placeholder("x")
    # Later operations may write in place, and the map belongs to the caller.
    copies = {start: graph.call_method("clone", (x,)) if start in taps.overwritten else x}
    for node in taps.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)

    def found(nodes: Iterable[Node | None]) -> tuple[Node, ...]:
        return tuple(copies[node] for node in nodes if node in copies)

    stages = () if upto is None else (end,)
    pre = () if upto is None else (taps.pre[last - 1],)
    return TapGraph(
        graph,
        copies[end],
        next(iter(found([taps.embedding])), None),
        None,
        found(stages),
        found(pre),
        frozenset(found(taps.overwritten)),
        taps.flat,
    )


def _between(start: Node, end: Node, images: Node) -> set[Node]:
    """What the end is computed from, down to the start."""
    needed, rest = {start, end}, [end]
    while rest:
        for source in set(rest.pop().all_input_nodes) - needed:
            if source is images:
                raise TraceError("behind the cut it uses what was computed before it again")
            needed.add(source)
            rest.append(source)
    return needed


def _writes_to(net: nn.Module, node: Node, needed: set[Node]) -> bool:
    """Whether a node is there for what it does to a map that is needed, as ``relu_(x)`` alone."""
    if node.users or not node.all_input_nodes or not needed.issuperset(node.all_input_nodes):
        return False
    in_place = getattr(module_of(net, node), "inplace", node.kwargs.get("inplace", False))
    return bool(in_place) or name_of(node).endswith("_")
