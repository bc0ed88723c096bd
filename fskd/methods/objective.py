"""What every run learns from labels and from the teacher's soft targets.

Term names are shared vocabulary: ``ce`` is the cross-entropy of the real rows with their labels,
``kd`` the teacher's KL divergence on the images of the data (real and unlabelled), ``generated``
the same on generated rows, ``mixed`` their cross-entropy with the labels of their parents.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fskd.losses.fused.terms import kd_terms
from fskd.losses.targets import cross_entropy, kl_divergence, mixed_cross_entropy
from fskd.types import Batch

NAMES = ("ce", "kd", "generated", "mixed")


class Objective(NamedTuple):
    """Weights of the shared terms; ``ce``, ``kd``, ``kdplus`` and ``mixup`` are presets of it.

    L = ce_weight*CE(s(x), y) + kd_weight*KD_T(s(x), t(x)) + generated_weight*KD_T(s(x~), t(x~))
    + mixed_weight*sum_j w_j CE(s(x~), y_j), batch means, x~ generated rows with parents j.

    Attributes:
        ce_weight: Of the labels.
        kd_weight: Of the teacher's soft targets.
        generated_weight: The same for generated rows; None for ``kd_weight``.
        mixed_weight: Of the labels of generated rows' parents.
        temperature: T of both KD terms.
        label_smoothing: e: the label keeps 1-e, the other classes share e.
    """

    ce_weight: float = 1.0
    kd_weight: float = 0.0
    generated_weight: float | None = None
    mixed_weight: float = 0.0
    temperature: float = 4.0
    label_smoothing: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term by name."""
        generated = self.kd_weight if self.generated_weight is None else self.generated_weight
        return dict(
            zip(NAMES, (self.ce_weight, self.kd_weight, generated, self.mixed_weight), strict=True)
        )

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked."""
        return self.weights["kd"] > 0 or self.weights["generated"] > 0

    @property
    def makes(self) -> bool:
        """Whether generated rows are learned from."""
        return self.weights["generated"] > 0 or self.weights["mixed"] > 0

    def only(self, names: frozenset[str]) -> "Objective | None":
        """With the other terms' weights set to 0; None without any."""
        if not names:
            return None
        kept = {f"{name}_weight": w if name in names else 0.0 for name, w in self.weights.items()}
        return self._replace(**kept)

    def terms(
        self, batch: Batch, labelled: Sequence[Tensor], teacher: Tensor | None
    ) -> dict[str, Tensor]:
        """Unweighted terms; one without rows is left out.

        Args:
            batch: The batch.
            labelled: Logits (rows, K) that learn the labels, the student's first.
            teacher: Its logits, if it is asked.
        """
        student, *others = labelled
        base = batch.part("base")
        found = {} if teacher is None else self._soft(batch, student[base], teacher[base])
        if batch.n_real:
            if "ce" not in found or self.label_smoothing > 0:
                found["ce"] = self._labels(batch, student)
            for other in others:
                found["ce"] = found["ce"] + self._labels(batch, other)
        if self.mixed_weight > 0 and batch.n_generated:
            if batch.parents is None or batch.shares is None:
                raise ValueError("labels cannot be mixed: the generator mixes no labelled rows")
            rows = student[batch.part("generated")]
            found["mixed"] = mixed_cross_entropy(rows, batch.parents, batch.shares)
        return found

    def _labels(self, batch: Batch, logits: Tensor) -> Tensor:
        return cross_entropy(logits[: batch.n_real], batch.targets, self.label_smoothing)

    def _soft(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Labels and soft targets together, which share their softmaxes."""
        weights, known = self.weights, batch.n_known
        if known > batch.n_real:
            return self._with_unlabelled(batch, student, teacher)
        expected = (weights["ce"], weights["kd"], weights["generated"])
        found = kd_terms(student, teacher, batch.targets, self.temperature, expected)
        rows = {"ce": known, "kd": known, "generated": batch.n_generated}
        return {name: term for name, term in found._asdict().items() if rows[name]}

    def _with_unlabelled(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The definitions: rows with soft targets are not the rows with labels."""
        found = {"ce": self._labels(batch, student)} if batch.n_real else {}
        known, made = slice(0, batch.n_known), batch.part("generated")
        found["kd"] = kl_divergence(student[known], teacher[known], self.temperature)
        if batch.n_generated:
            found["generated"] = kl_divergence(student[made], teacher[made], self.temperature)
        return found
