"""Taps: any network -> logits, embedding, stages and pre-activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.modes import modes_kept
from fskd.models.norms import find_norm
from fskd.models.staged import Staged
from fskd.models.trace import TapGraph, TraceError, last_linear, trace
from fskd.types import TAPS, Outputs, TapShapes

LOGITS = frozenset({"logits"})


class FeatureNet(nn.Module):
    """A network whose forward pass returns the taps that are asked for.

    A network with a ``taps(x) -> Outputs`` method says itself what they are. Any other is traced
    with ``torch.fx`` the first time that more than its logits is read, and keeps its own modules
    and parameters. The state dict has the prefix ``net.``; save ``feature_net.net.state_dict()``.

    Args:
        net: A network that maps images (rows, C, H, W) to logits (rows, K).

    Example:
        >>> from fskd.models.catalog import build
        >>> net = FeatureNet(build("cnn_tiny", num_classes=10, in_channels=1))
        >>> out = net(torch.zeros(2, 1, 8, 8), frozenset({"logits", "embedding"}))
        >>> out.logits.shape, out.embedding.shape
        (torch.Size([2, 10]), torch.Size([2, 32]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._graphs: dict[bool, TapGraph] = {}
        self._functions: dict[tuple[bool, frozenset[str]], Callable[..., Outputs]] = {}

    def forward(self, x: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        """The taps in ``read`` for images (rows, C, H, W).

        Raises:
            SettingError: If the network cannot give a tap other than its logits.
        """
        if read == LOGITS:
            return Outputs(logits=self._logits(x))
        if hasattr(self.net, "taps"):
            out = cast(Outputs, cast(Any, self.net).taps(x))
            if "stem" in read and out.stem is None:
                given = f"{self._name()} (its taps(x) gives no stem)"
                raise SettingError("model", given, "a network whose taps(x) gives its stem")
            return Outputs(**{name: getattr(out, name) for name in read})
        return self._traced(x, read)(self, x)

    def feature_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the classifier.

        Raises:
            SettingError: If the network has no ``classifier_name`` and no linear layer.
        """
        classifier = set(self._classifier().parameters())
        return [p for p in self.net.parameters() if p not in classifier]

    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        """Shapes of the taps for one image, by a probe in eval mode that leaves no trace.

        Args:
            size: (C, H, W).
            read: Taps that the network must have; others that it lacks have an empty shape.

        Returns:
            The shapes and, for each ``pre``, the batch normalisation before it.

        Raises:
            SettingError: If a tap in ``read`` cannot be found.
        """
        first = next(self.net.parameters(), torch.empty(0))
        probe = torch.zeros((2, *size), dtype=first.dtype, device=first.device)
        shapes: dict[str, Any] = {"embedding": (), "stages": (), "pre": ()}
        groups = ({"logits"}, {"embedding"}, {"stem"}, {"stages", "pre"})
        with torch.no_grad(), modes_kept(self.net):
            self.net.eval()
            for names in map(frozenset, groups):
                with _allowed_to_fail(not names & read):
                    out = self(probe, names)
                    shapes.update({name: _shape(getattr(out, name)) for name in names})
            norms = self._norms(probe, len(shapes["pre"]))
        shapes["norms"] = tuple(
            norm if getattr(norm, "num_features", None) == pre[0] else None
            for norm, pre in zip(norms, shapes["pre"], strict=True)
        )
        return TapShapes(**shapes)

    def tap_graph(self, x: Tensor, training: bool) -> TapGraph:
        """The trace of the network in one mode, for images like ``x``.

        Raises:
            TraceError: If the network cannot be traced.
        """
        if training not in self._graphs:
            self._graphs[training] = trace(self, self.net, x, training)
        return self._graphs[training]

    def _norms(self, x: Tensor, n: int) -> list[nn.Module | None]:
        if isinstance(self.net, Staged):
            return [self.net.norm(index) for index in range(n)]
        if n == 0 or hasattr(self.net, "taps"):
            return [None] * n
        return [find_norm(self.net, node) for node in self.tap_graph(x, False).pre]

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if not isinstance(logits, Tensor):
            given = f"{self._name()} (its forward pass returns {type(logits).__name__})"
            raise SettingError("model", given, "a network that returns one tensor of logits")
        return logits

    def _classifier(self) -> nn.Module:
        name = getattr(self.net, "classifier_name", None)
        if isinstance(name, str):
            return self.net.get_submodule(name)
        classifier = last_linear(self.net)
        if classifier is None:
            given = f"{self._name()} (it has no torch.nn.Linear layer)"
            raise SettingError("model", given, "a network that ends in a linear layer")
        return classifier

    def _traced(self, x: Tensor, read: frozenset[str]) -> Callable[..., Outputs]:
        key = (self.net.training, read)
        if key not in self._functions:
            try:
                self._functions[key] = self.tap_graph(x, key[0]).compile(self, read)
            except TraceError as error:
                taps = ", ".join(name for name in TAPS if name in read - LOGITS)
                given = f"{self._name()} ({taps} cannot be read: {error})"
                accepted = "a network that torch.fx can trace, or one with a taps(x) method"
                raise SettingError("model", given, accepted) from error
        return self._functions[key]

    def _name(self) -> str:
        return f"'{type(self.net).__name__}'"

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions cannot be pickled; a copy makes its own when it needs them.
        return {**self.__dict__, "_graphs": {}, "_functions": {}}


def _shape(tap: Tensor | tuple[Tensor, ...]) -> tuple[Any, ...]:
    if isinstance(tap, Tensor):
        return tuple(tap.shape[1:])
    return tuple(tuple(tensor.shape[1:]) for tensor in tap)


@contextmanager
def _allowed_to_fail(allowed: bool) -> Iterator[None]:
    try:
        yield
    except SettingError:
        if not allowed:
            raise
