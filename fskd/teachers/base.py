"""The teacher: frozen, asked in one place, its answers counted and kept where that saves some.

What is asked is a *source*: a network with its taps, several of them, or a black box, each a module
in a file of its own. It is called as ``source(inputs, taps) -> Outputs`` and may say what it
``offers`` (``FeatureNet`` offers every tap) and which ``members`` it has.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fskd.errors import TrainingError
from fskd.methods.words import LOGITS, Mode
from fskd.models.modes import in_mode
from fskd.models.restricted import Restricted
from fskd.models.taps import FeatureNet
from fskd.types import TAPS, Batch, Outputs, TapShapes


class Source(nn.Module):
    """Base of sources that are not one network; gives logits that follow from probabilities.

    Class attributes:
        kind: What it is, for messages.
        offers: Taps that it can give.
        exact: Whether its logits are a network's own, rather than known up to a constant per row.
        opaque: Whether it is known by its answers alone: no gradient reaches the inputs, and it is
            asked in training only, since every answer may cost.
    """

    kind: ClassVar[str]
    offers: frozenset[str] = LOGITS
    exact = False
    opaque = False

    @property
    def members(self) -> Sequence[nn.Module]:
        """The networks that are asked, itself if it has none."""
        return (self,)

    @abstractmethod
    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        """Shapes of the taps for one image (C, H, W), of the first of several members."""

    @abstractmethod
    def restricted(self, classes: Tensor) -> "Source":
        """The same with the logits of some classes only.

        Args:
            classes: Numbers of the classes to keep, int64 (N,).
        """


class Teacher:
    """A frozen source that answers for whole batches and counts what it was asked.

    Not a module: it stays outside the module that is trained, wrapped and saved.

    Args:
        net: The source.
        device: Where it runs.
        budget: Most rows that may be asked; None for any number.

    Attributes:
        queries: Rows that went through each network of the source so far, added up.
    """

    def __init__(
        self, net: FeatureNet | Source, device: torch.device, budget: int | None = None
    ) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.members = members(net)
        self.queries, self.budget = 0, budget
        self._unseen: Iterable[Tensor] = ()
        self._n_kept, self._n = 0, 0
        self._kept: Tensor | None = None
        self._keep: Callable[[Tensor], None] | None = None

    @property
    def offers(self) -> frozenset[str]:
        """Taps that can be read."""
        return offers(self.net)

    def remember(
        self,
        images: Iterable[Tensor],
        n_kept: int,
        n: int,
        known: Tensor | None = None,
        keep: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Keeps the logits of the first examples of the subset, from when one is first needed.

        They count as asked from now on.

        Args:
            images: These examples in subset order, some at a time.
            n_kept: How many they are.
            n: How many examples the subset has.
            known: Their logits (n_kept, K), if they are known already.
            keep: Gets the logits when they were asked for.
        """
        self._unseen, self._n_kept, self._n = images, n_kept, n
        self._kept, self._keep = known, keep
        self._count(n_kept)

    @torch.no_grad()
    def ask(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        """Taps for images, in eval mode; counted."""
        self._count(len(inputs))
        return self.net(inputs, taps)

    def recall(self, rows: int) -> None:
        """Counts rows that an earlier attempt of the same run asked about."""
        self._count(rows)

    def answer(
        self,
        batch: Batch,
        taps: frozenset[str],
        mode: Mode = "role",
        input_grad: bool = False,
    ) -> Outputs:
        """Taps for all rows of a batch.

        Args:
            batch: Rows; inputs on the teacher's device.
            taps: Taps to fill.
            mode: ``batch`` for batch statistics (OFD); the running ones stay as they are.
            input_grad: Keep the graph to the inputs (Jacobian matching).

        Returns:
            Outputs without gradient unless ``input_grad``. Made under ``no_grad`` rather than
            ``inference_mode``, whose tensors cannot be saved for backward.
        """
        with torch.set_grad_enabled(input_grad):
            if self._n_kept and taps == LOGITS and mode != "batch" and not input_grad:
                return Outputs(logits=self._recalled(batch))
            self._count(len(batch.inputs))
            if mode != "batch":
                return _answer(self.net, batch, taps)
            with in_mode(self.net, mode):
                return self.net(batch.inputs, taps)

    @torch.no_grad()
    def each(self, batch: Batch, taps: frozenset[str]) -> tuple[Outputs, ...]:
        """What each of several teachers says of all rows of a batch."""
        self._count(len(batch.inputs))
        return tuple(_answer(member, batch, taps) for member in self.members)

    def _count(self, rows: int) -> None:
        self.queries += rows * len(self.members)
        if self.budget is not None and self.queries > self.budget:
            raise TrainingError(
                f"the teacher was asked for {self.queries:,} rows, more than teacher.queries"
                f" ({self.budget:,}) allows"
            )

    def _recalled(self, batch: Batch) -> Tensor:
        """Logits of all rows, those of remembered examples without asking."""
        memory, n_real = self._memory(), batch.n_real
        if self._n_kept == self._n:  # the usual case, in which nobody looks at the indices
            known, rest = memory[batch.indices], batch.inputs[n_real:]
            return torch.cat([known, self._asked(rest, memory)]) if len(rest) else known
        old = torch.zeros(len(batch.inputs), dtype=torch.bool, device=memory.device)
        old[:n_real] = batch.indices < self._n_kept
        logits = memory.new_empty(len(old), memory.shape[1])
        logits[old] = memory[batch.indices[old[:n_real]]]
        if not old.all():
            logits[~old] = self._asked(batch.inputs[~old], memory)
        return logits

    def _asked(self, inputs: Tensor, like: Tensor) -> Tensor:
        self._count(len(inputs))
        return self.net(inputs, LOGITS).logits.to(like.dtype)

    def _memory(self) -> Tensor:
        """The remembered logits, (n_kept, K)."""
        if self._kept is None:
            start = 0
            for part in self._unseen:
                logits = self.net(part, LOGITS).logits
                if self._kept is None:  # filled in place: no second copy at the end
                    self._kept = logits.new_empty(self._n_kept, logits.shape[1])
                self._kept[start : start + len(part)] = logits
                start += len(part)
            self._unseen = ()
            if self._keep is not None:
                self._keep(cast(Tensor, self._kept))
        return cast(Tensor, self._kept)


def _answer(net: nn.Module, batch: Batch, taps: frozenset[str]) -> Outputs:
    """What a source says of all rows; one with ``answer_rows`` looks at more than the inputs."""
    answer_rows: Callable[[Batch], Outputs] | None = getattr(net, "answer_rows", None)
    if answer_rows is not None:
        return answer_rows(batch)
    return cast(Outputs, net(batch.inputs, taps))


def offers(net: nn.Module) -> frozenset[str]:
    """Taps that a source can give."""
    return getattr(net, "offers", frozenset(TAPS))


def exact(net: nn.Module) -> bool:
    """Whether a source's logits are a network's own."""
    return getattr(net, "exact", True)


def opaque(net: nn.Module) -> bool:
    """Whether a source is known by its answers alone."""
    return getattr(net, "opaque", False)


def members(net: nn.Module) -> Sequence[nn.Module]:
    """The networks that a source asks."""
    return cast(Sequence[nn.Module], getattr(net, "members", (net,)))


def restrict(net: FeatureNet | Source, classes: Tensor) -> FeatureNet | Source:
    """A source of K classes as one of some of them, int64 (N,), in the order of the new ones."""
    return net.restricted(classes) if isinstance(net, Source) else Restricted(net, classes)
