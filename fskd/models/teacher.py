"""The teacher: frozen, in eval mode, its logits kept where a sample has only one view."""

from collections.abc import Iterable

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
        self._cache: Tensor | None = None

    @torch.no_grad()
    def remember(self, images: Iterable[Tensor]) -> None:
        """Keeps the logits of all n training examples, given in subset order."""
        kept = []
        for part in images:
            self.queries += len(part)
            kept.append(self.net(part).logits)
        self._cache = torch.cat(kept)

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
            if self._cache is None or read != LOGITS or with_grad:
                self.queries += len(batch.inputs)
                return self.net(batch.inputs, read)
            known = self._cache[batch.indices]
            rest = batch.inputs[batch.n_real :]
            if not len(rest):
                return Outputs(logits=known)
            self.queries += len(rest)
            return Outputs(logits=torch.cat([known, self.net(rest).logits.to(known.dtype)]))
