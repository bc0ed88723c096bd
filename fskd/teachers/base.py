"""The teacher: frozen, asked in one place, its answers counted and kept where that saves some.

What is asked is a *source*: a network with its taps, several of them, or a black box, each a module
in a file of its own. It is called as ``source(inputs, taps) -> Outputs`` and may say what it
``offers`` (``FeatureNet`` offers every tap) and which ``members`` it has.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fskd.errors import TrainingError
from fskd.methods.base import LOGITS, Mode
from fskd.models.modes import in_mode
from fskd.types import TAPS, Batch, Outputs


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

    def __init__(self, net: nn.Module, device: torch.device, budget: int | None = None) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.members: Sequence[nn.Module] = getattr(net, "members", (net,))
        self.queries, self.budget = 0, budget
        self._unseen: Iterable[Tensor] = ()
        self._n_kept, self._n = 0, 0
        self._kept: Tensor | None = None

    @property
    def offers(self) -> frozenset[str]:
        """Taps that can be read."""
        return offers(self.net)

    def remember(self, images: Iterable[Tensor], n_kept: int, n: int) -> None:
        """Keeps the logits of the first examples of the subset, from when one is first needed.

        They count as asked from now on.

        Args:
            images: These examples in subset order, some at a time.
            n_kept: How many they are.
            n: How many examples the subset has.
        """
        self._unseen, self._n_kept, self._n, self._kept = images, n_kept, n, None
        self._count(n_kept)

    @torch.no_grad()
    def ask(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        """Taps for images, in eval mode; counted."""
        self._count(len(inputs))
        return self.net(inputs, taps)

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
                return self.net(batch.inputs, taps)
            with in_mode(self.net, mode):
                return self.net(batch.inputs, taps)

    @torch.no_grad()
    def each(self, batch: Batch, taps: frozenset[str]) -> tuple[Outputs, ...]:
        """What each of several teachers says of all rows of a batch."""
        self._count(len(batch.inputs))
        return tuple(member(batch.inputs, taps) for member in self.members)

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
        return cast(Tensor, self._kept)


def offers(net: nn.Module) -> frozenset[str]:
    """Taps that a source can give."""
    return getattr(net, "offers", frozenset(TAPS))
