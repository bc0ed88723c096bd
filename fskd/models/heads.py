"""The classifier of a network, and how a file fits the rest of it."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

POSITIONS = "pos_embed"


def classifier_names(net: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that give the logits; several for a network with several heads.

    They are the network's ``classifier_name``, else what timm knows, else the last linear layer.
    """
    own = getattr(net, "classifier_name", None)
    if isinstance(own, str):
        return (own,)
    linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return _timm_names(net) or tuple(linears[-1:])


def in_any(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a weight's name lies in one of these modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def without_head(
    state: dict[str, Tensor], expected: Mapping[str, Tensor], heads: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Replaces a file's classifier by the network's own, and says so.

    Args:
        state: The file's weights. If the network's heads are not among them, a pair of weight and
            bias that the network does not know and that looks like a linear layer is taken for
            the file's head.
        expected: The network's state dict.
        heads: What ``classifier_names`` gives.

    Returns:
        The weights with the network's own classifier, and notes.
    """
    other = () if any(in_any(name, heads) for name in state) else _strange(state, expected)
    theirs = other if 0 < len(other) <= max(len(heads), 1) else heads
    notes = []
    for i, head in enumerate(heads or theirs):
        source = theirs[i] if i < len(theirs) else head
        size, here = _classes(state, source), _classes(expected, head) or "none"
        there = f"{'' if source == head else f'{source} of '}{size} classes" if size else "none"
        notes.append(f"head {head} left as initialised ({there} in the file, {here} here)")
    body = {name: value for name, value in state.items() if not in_any(name, heads + theirs)}
    return body | {name: expected[name] for name in expected if in_any(name, heads)}, notes


def resampled(net: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Fits the position embeddings of a timm vision transformer to the size of its images."""
    theirs, ours = state.get(POSITIONS), net.state_dict().get(POSITIONS)
    if theirs is None or ours is None or theirs.shape == ours.shape or theirs.ndim != 3:
        return state, []
    try:
        from timm.layers import resample_abs_pos_embed
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        return state, []
    if not isinstance(net, VisionTransformer):
        return state, []
    n_prefix = 0 if net.no_embed_class else net.num_prefix_tokens
    old, size = math.isqrt(max(theirs.shape[1] - n_prefix, 0)), list(net.patch_embed.grid_size)
    if old**2 != theirs.shape[1] - n_prefix:  # of images that were not square
        return state, []
    fitted = resample_abs_pos_embed(theirs, size, num_prefix_tokens=n_prefix)
    note = f"{POSITIONS} resampled from {old}x{old} to {size[0]}x{size[1]}"
    return state | {POSITIONS: fitted}, [note]


def _timm_names(net: nn.Module) -> tuple[str, ...]:
    for settings in (getattr(net, "pretrained_cfg", None), getattr(net, "default_cfg", None)):
        named = settings.get("classifier") if isinstance(settings, Mapping) else None
        names = (named,) if isinstance(named, str) else tuple(named or ())
        modules = dict(net.named_modules())
        if names and any(name in modules for name in names):
            return tuple(name for name in names if name in modules)
    getter = getattr(net, "get_classifier", None)
    given = getter() if callable(getter) else ()
    heads = [given] if isinstance(given, nn.Module) else list(given or ())
    return tuple(n for n, module in net.named_modules() if any(module is head for head in heads))


def _strange(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, ...]:
    unknown = [name.rpartition(".")[0] for name in state if name not in expected]
    return tuple(name for name in dict.fromkeys(unknown) if _is_linear(state, name))


def _is_linear(state: Mapping[str, Tensor], name: str) -> bool:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None:
        return False
    return weight.ndim == 2 and bias.ndim == 1 and len(weight) == len(bias)


def _classes(state: Mapping[str, Tensor], head: str) -> int:
    sizes = [len(value) for name, value in state.items() if in_any(name, (head,)) and value.ndim]
    return sizes[0] if sizes else 0
