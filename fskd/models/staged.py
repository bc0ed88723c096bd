"""Base of the networks of the zoo: a stem, stages of equal resolution and a head."""

from typing import NamedTuple

from torch import Tensor, nn

from fskd.types import Outputs


class Stage(NamedTuple):
    """What a stage gave: its map, and the same before its last activation if the stage has it."""

    map: Tensor
    before: Tensor | None


class Staged(nn.Module):
    """A network that says what its parts are; its taps and its sections follow from that.

    Parameters belong to the modules that ``stem``, ``stage`` and ``head`` call, so that a section
    of the network can do without the others.

    Attributes:
        n_stages: Number of stages behind the stem.
        classifier_name: Path of the linear layer that gives the logits.
    """

    n_stages: int
    classifier_name: str

    def stem(self, x: Tensor) -> Tensor:
        """Map (rows, C_0, H_0, W_0) of images (rows, C, H, W)."""
        raise NotImplementedError

    def stage(self, index: int, x: Tensor) -> Stage:
        """Stage ``index`` behind the map of the one before, or of the stem."""
        raise NotImplementedError

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (rows, D) and logits (rows, K) from the map of the last stage."""
        raise NotImplementedError

    def norm(self, index: int) -> nn.Module | None:
        """The batch normalisation that makes the map of a stage before its activation."""
        return None

    def taps(self, x: Tensor) -> Outputs:
        """All taps for images (rows, C, H, W)."""
        x = stem = self.stem(x)
        stages, pre = [], []
        for index in range(self.n_stages):
            x, before = self.stage(index, x)
            stages.append(x)
            if before is not None:
                pre.append(before)
        embedding, logits = self.head(x)
        return Outputs(logits, embedding, tuple(stages), tuple(pre), stem)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (rows, K)."""
        return self.taps(x).logits
