"""The teacher: frozen, in eval mode, its logits kept where a sample has only one view."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from fskd.models.taps import LOGITS, FeatureNet
from fskd.types import Batch, Outputs


class Teacher:
    """A frozen network that answers for whole batches and counts what it was asked.

    Not a module: it stays outside the module that is trained, wrapped and saved.

    Args:
        net: The network.
        device: Where it runs.

    Attributes:
        queries: Rows that went through the network so far.
    """

    def __init__(self, net: FeatureNet, device: torch.device) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.momentum = 0.0  # train mode (OFD) must not move the running statistics
        self.queries = 0
        self._unseen: Iterable[Tensor] = ()
        self._n_kept, self._n = 0, 0
        self._kept: Tensor | None = None

    def remember(self, images: Iterable[Tensor], n_kept: int, n: int) -> None:
        """Keeps the logits of the first examples of the subset, from when one is first needed.

        They count as asked from now on.

        Args:
            images: These examples in subset order, some at a time.
            n_kept: How many they are.
            n: How many examples the subset has.
        """
        self._unseen, self._n_kept, self._n, self._kept = images, n_kept, n, None
        self.queries += n_kept

    @torch.no_grad()
    def ask(self, inputs: Tensor, read: frozenset[str] = LOGITS) -> Outputs:
        """Taps for images, in eval mode; counted."""
        self.net.eval()
        self.queries += len(inputs)
        return self.net(inputs, read)

    def outputs(
        self,
        batch: Batch,
        read: frozenset[str],
        train_mode: bool = False,
        with_grad: bool = False,
    ) -> Outputs:
        """Taps for all rows of a batch.

        Args:
            batch: Rows; inputs on the teacher's device.
            read: Taps to fill; none means the teacher is not run.
            train_mode: Use batch statistics (OFD); the running ones stay as they are.
            with_grad: Keep the graph to the inputs (Jacobian matching).

        Returns:
            Outputs without gradient unless ``with_grad``. Made under ``no_grad`` rather than
            ``inference_mode``, whose tensors cannot be saved for backward.
        """
        if not read:
            return Outputs()
        if self.net.training != train_mode:
            self.net.train(train_mode)
        with torch.set_grad_enabled(with_grad):
            if not self._n_kept or read != LOGITS or with_grad:
                self.queries += len(batch.inputs)
                return self.net(batch.inputs, read)
            return Outputs(logits=self._recalled(batch))

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
        self.queries += len(inputs)
        return self.net(inputs).logits.to(like.dtype)

    def _memory(self) -> Tensor:
        """The remembered logits, (n_kept, K)."""
        if self._kept is None:
            start = 0
            for part in self._unseen:
                logits = self.net(part).logits
                if self._kept is None:  # filled in place: no second copy at the end
                    self._kept = logits.new_empty(self._n_kept, logits.shape[1])
                self._kept[start : start + len(part)] = logits
                start += len(part)
            self._unseen = ()
        return cast(Tensor, self._kept)
