"""Taps: any network -> logits, embedding, stages and pre-activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.modes import modes_kept
from fskd.models.named_taps import contents, known_names, listen
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
        net: A network that maps images (rows, C, H, W) to logits (rows, K). Of one that was
            compiled with ``torch.compile``, the network itself is taken.
        taps: Names of modules of the network, such as ``blocks.3``: their outputs are the stages
            and pre-activations, and the input of its classifier is the embedding. This needs no
            trace; the stem is None.
        logits: Which of several outputs of the network its logits are, a position or a name; an
            output named ``logits`` is found without it.

    Example:
        >>> from fskd.models.catalog import build
        >>> net = FeatureNet(build("cnn_tiny", num_classes=10, in_channels=1))
        >>> out = net(torch.zeros(2, 1, 8, 8), frozenset({"logits", "embedding"}))
        >>> out.logits.shape, out.embedding.shape
        (torch.Size([2, 10]), torch.Size([2, 32]))
    """

    def __init__(
        self, net: nn.Module, taps: Sequence[str] | str = (), logits: str | int | None = None
    ) -> None:
        super().__init__()
        # Its copies and saved weights are then those of the network; it is compiled anew if asked.
        self.net: nn.Module = getattr(net, "_orig_mod", net)
        self.names = known_names(self.net, taps)
        self.output = logits
        self._head: str | None = None
        self._graphs: dict[bool, TapGraph] = {}
        self._functions: dict[tuple[bool, frozenset[str]], Callable[..., Outputs]] = {}

    def forward(self, x: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        """The taps in ``read`` for images (rows, C, H, W).

        Raises:
            SettingError: If the network cannot give a tap other than its logits.
        """
        if read == LOGITS:
            return Outputs(logits=self._logits(self.net(x)))
        if self.names:
            return self._named(x, read)
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
        if self.names:
            return [None] * n
        if isinstance(self.net, Staged):
            return [self.net.norm(index) for index in range(n)]
        if n == 0 or hasattr(self.net, "taps"):
            return [None] * n
        return [find_norm(self.net, node) for node in self.tap_graph(x, False).pre]

    def _logits(self, output: object) -> Tensor:
        if isinstance(output, Tensor):
            return output
        found = _part(output, "logits" if self.output is None else self.output)
        if isinstance(found, Tensor):
            return found
        given = f"{self._name()} (its forward pass returns {contents(output)})"
        accepted = "one tensor of logits, or logits= (such as 0 or 'out') that says which it is"
        raise SettingError("model", given, accepted)

    def _named(self, x: Tensor, read: frozenset[str]) -> Outputs:
        names = self.names if read & {"stages", "pre"} else ()
        heard = listen(self.net, x, names, self._classifier() if "embedding" in read else None)
        taps: dict[str, Any] = {"stages": heard.maps, "pre": heard.maps, "stem": None}
        taps["embedding"] = heard.embedding
        if "logits" in read:
            taps["logits"] = self._logits(heard.output)
        return Outputs(**{name: taps[name] for name in read})

    def _classifier(self) -> nn.Module:
        if self._head is None:  # its name only, since a copy has a classifier of its own
            self._head = _find_classifier(self.net)
        if self._head is None:
            given = f"{self._name()} (it has no torch.nn.Linear layer)"
            raise SettingError("model", given, "a network that ends in a linear layer")
        return self.net.get_submodule(self._head)

    def _traced(self, x: Tensor, read: frozenset[str]) -> Callable[..., Outputs]:
        key = (self.net.training, read)
        if key not in self._functions:
            try:
                self._functions[key] = self.tap_graph(x, key[0]).compile(self, read)
            except TraceError as error:
                taps = ", ".join(name for name in TAPS if name in read - LOGITS)
                given = f"{self._name()} ({taps} cannot be read: {error})"
                accepted = (
                    "a network that torch.fx can trace, one with a taps(x) method, or names of its "
                    "modules, such as student.taps or teacher.taps of [blocks.3, blocks.7]"
                )
                raise SettingError("model", given, accepted) from error
        return self._functions[key]

    def _name(self) -> str:
        return f"'{type(self.net).__name__}'"

    def extra_repr(self) -> str:
        """What tells it from the same network with other taps, also in hashes."""
        given = {"taps": self.names, "logits": self.output}
        return ", ".join(
            f"{name}={value!r}" for name, value in given.items() if value or value == 0
        )

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions cannot be pickled; a copy makes its own when it needs them.
        return {**self.__dict__, "_graphs": {}, "_functions": {}}


def _part(output: object, which: str | int) -> object:
    """One of the outputs of a network; None if there is none."""
    if isinstance(which, str):
        return output.get(which) if isinstance(output, Mapping) else getattr(output, which, None)
    try:
        return cast(Any, output)[which]
    except (LookupError, TypeError):
        return None


def _find_classifier(net: nn.Module) -> str | None:
    """Name of the layer that gives the logits: as the network says, else its last linear one."""
    name = getattr(net, "classifier_name", None)
    if isinstance(name, str):
        return name
    ask = getattr(net, "get_classifier", None)  # networks of timm
    said = ask() if callable(ask) else None
    classifier = said if isinstance(said, nn.Linear) else last_linear(net)
    return next((name for name, module in net.named_modules() if module is classifier), None)


def _shape(tap: Tensor | tuple[Tensor, ...] | None) -> tuple[Any, ...]:
    if tap is None:
        return ()
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
