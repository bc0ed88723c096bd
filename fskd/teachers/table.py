"""A teacher's probabilities of the training images, collected before and kept in a file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fskd.errors import SettingError
from fskd.methods.words import LOGITS
from fskd.teachers.base import Source
from fskd.teachers.probabilities import log_probabilities, read_probabilities
from fskd.types import Batch, Outputs, TapShapes

SETTING = "teacher.table"


class Table(Source):
    """Answers for the images of the training set, and for nothing else.

    Args:
        probs: Probabilities of the N training images in data-set order, (N, K).
    """

    kind = "a table"
    opaque = True
    logits: Tensor

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", log_probabilities(probs), persistent=False)

    def choose(self, positions: Tensor) -> None:
        """Keeps the rows of the training subset, which batches index: int64 (n,)."""
        self.logits = self.logits[positions.to(self.logits.device)]

    def answer_rows(self, batch: Batch) -> Outputs:
        """Logits (B, K) of the real rows of a batch that has no others."""
        if batch.n_real < len(batch.inputs):
            raise SettingError(SETTING, "a row that is no training image", "real rows only")
        return Outputs(logits=self.logits[batch.indices])

    def forward(self, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
        """A table does not look at images.

        Raises:
            SettingError: In any case.
        """
        raise SettingError(SETTING, f"{len(inputs)} images", "rows of the training subset")

    def tap_shapes(self, size: tuple[int, ...], read: frozenset[str] = LOGITS) -> TapShapes:
        """Shape of the logits."""
        return TapShapes((self.logits.shape[1],), (), (), ())

    def restricted(self, classes: Tensor) -> Source:
        """An episode has images of its own.

        Raises:
            SettingError: In any case.
        """
        raise SettingError(SETTING, "a table", "a teacher that can be asked with episodic")


def read_table(path: Path, rows: int, num_classes: int) -> Table:
    """The table in an ``.npz`` file with ``probs``, float (N, K).

    Args:
        path: The file.
        rows: N, training images of the data set.
        num_classes: K.

    Raises:
        SettingError: If the file is missing, damaged, or of other data.
    """
    accepted = f"an .npz file with probs, {rows}x{num_classes} numbers whose rows sum to 1"
    if not path.is_file():
        raise SettingError(SETTING, f"'{path}' (no such file)", accepted)
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = stored["probs"]
    except KeyError:
        raise SettingError(SETTING, f"'{path}' (it has no probs)", accepted) from None
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        reason = "damaged, or no .npz file"
        raise SettingError(SETTING, f"'{path}' ({reason})", accepted) from error
    if not np.issubdtype(found.dtype, np.floating):
        raise SettingError(SETTING, f"'{path}' (probs of {found.dtype})", accepted)
    try:
        return Table(read_probabilities(found, rows, num_classes, torch.device("cpu")))
    except ValueError as error:
        raise SettingError(SETTING, f"'{path}' ({error})", accepted) from None
