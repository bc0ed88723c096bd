"""The interface of a distillation method.

A method names the taps it reads and turns them into unweighted scalar losses. It never calls a
network, owns no optimiser, no loader and no schedule. Adapters, memory banks and heads are ordinary
submodules and buffers, so device placement, checkpoints and optimiser membership come free.

Term names are shared vocabulary: ``ce`` is the cross-entropy of the real rows with their labels,
``kd`` the teacher's KL divergence on the real rows, ``generated`` the same on generated rows. A
composition (``kdplus+at``) takes a term that two parts share once, from the first of them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.losses.fused.terms import Terms, Weights, kd_terms
from fskd.losses.targets import cross_entropy
from fskd.registry import Registry
from fskd.types import Batch, EpochContext, Outputs, Progress, Settings, Shapes

Losses = dict[str, Tensor]


class MethodSettings(Settings):
    """Settings that every method has (none); subclasses add their own."""


class TaskSettings(MethodSettings):
    """Settings of methods that add terms of their own to the labels and, if asked, to KD."""

    ce_weight: float = Field(1.0, ge=0)
    kd_weight: float = Field(0.0, ge=0)
    temperature: float = Field(4.0, gt=0, description="Of the KD term.")


class Reads(NamedTuple):
    """What a method reads in one phase.

    Attributes:
        student: Taps of the students; empty when the students are not run in this phase.
        teacher: Taps of the teacher; empty when no teacher is needed.
        generated: True if some loss uses generated rows; a generator is refused otherwise.
        input_grad: True if inputs need a gradient (Jacobian matching).
        teacher_train: True if the teacher runs in train mode (OFD); eval mode otherwise.
    """

    student: frozenset[str] = frozenset({"logits"})
    teacher: frozenset[str] = frozenset()
    generated: bool = False
    input_grad: bool = False
    teacher_train: bool = False


class Phase(NamedTuple):
    """A stretch of training in which the same parameters are updated.

    Attributes:
        name: Passed on as ``Progress.phase``.
        share: Length relative to the other phases; the budget is divided in proportion, so that
            every method makes the same number of optimiser updates.
        trains: Parameters that are updated: ``students``, ``students.features`` (all but the
            classifier), ``method``, or ``method.<submodule>``. Everything else is frozen, and a
            network of which nothing is trained runs in eval mode.
        reads: Taps read in this phase.
        lr_scale: Factor on the learning rate.
    """

    name: str = "main"
    share: float = 1.0
    trains: tuple[str, ...] = ("students", "method")
    reads: Reads = Reads()
    lr_scale: float = 1.0


class ParamGroup(NamedTuple):
    """Some of a method's parameters with their own optimiser settings.

    Attributes:
        params: The parameters.
        lr_scale: Factor on the run's learning rate (``sgd``), or the learning rate (``adam``).
        weight_decay: None for the run's.
        optimizer: ``sgd``, the run's optimiser, or ``adam``, a second one (adversarial methods).
    """

    params: list[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    optimizer: str = "sgd"


class Method(nn.Module):
    """Base class of all methods; see the module docstring.

    Class attributes:
        Settings: The settings class.
        default_generator: Registry name of the generator used unless the run sets another.
        defaults: Run settings that suit the method, nested as in a run configuration; a file,
            options and ``--set`` win over them.
        single_process: True if its buffers cannot be kept in several processes (memories).
        unit_terms: Terms whose weights enter the divisor of the total loss. The total is divided
            by the sum of these weights so that arms share an effective learning rate; terms on
            another scale (features, relations) keep their published ratio to the label terms.

    Args:
        settings: An instance of ``Settings``.
        shapes: Shapes of the taps, number of classes and of examples.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    default_generator: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}
    single_process: ClassVar[bool] = False
    unit_terms: frozenset[str] = frozenset({"ce", "kd", "generated"})

    def __init__(self, settings: MethodSettings, shapes: Shapes) -> None:
        super().__init__()
        self.settings, self.shapes = settings, shapes

    @classmethod
    def students_needed(cls, settings: MethodSettings) -> int:
        """How many students are trained together; 1 except for online methods."""
        return 1

    @classmethod
    def phases_of(cls, settings: MethodSettings) -> tuple[Phase, ...]:
        """The phases, in order; known from the settings alone, before any network is built."""
        raise NotImplementedError

    def phases(self) -> tuple[Phase, ...]:
        """The phases of this instance."""
        return self.phases_of(self.settings)

    def views(self, batch: Batch, rng: torch.Generator, progress: Progress) -> Tensor | None:
        """Extra inputs (V, C, H, W) appended to the batch, or None. Only real rows are copied."""
        return None

    def forward(
        self,
        students: tuple[Outputs, ...],
        teacher: Outputs,
        batch: Batch,
        progress: Progress,
    ) -> Losses:
        """Unweighted scalar losses by name. A term without rows (B = 0 or M = 0) is left out.

        ``teacher`` is ``Outputs()`` in phases that do not read it.
        """
        raise NotImplementedError

    def weights(self, progress: Progress) -> dict[str, float]:
        """Weight of every term that ``forward`` can return in this phase."""
        raise NotImplementedError

    def on_epoch(self, context: EpochContext) -> None:
        """Called at the start of every epoch; what it changes must live in buffers."""

    def param_groups(self) -> list[ParamGroup]:
        """Parameters with their optimiser settings; default: all of them with the run's."""
        params = list(self.parameters())
        return [ParamGroup(params)] if params else []


methods: Registry[type[Method]] = Registry("method", "fskd.methods")


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """SettingError about ``method.<name>`` unless ``condition`` holds.

    Args:
        condition: What the method needs.
        name: The method or one of its settings.
        value: What was found instead.
        accepted: What would do.
    """
    if not condition:
        raise SettingError(f"method.{name}", value, accepted)


def task_reads(
    settings: MethodSettings, student: str, teacher: str, generated: bool = True
) -> Reads:
    """Reads of a method with ``TaskSettings`` whose own terms read one tap of each network."""
    own = cast(TaskSettings, settings)
    known = {teacher, "logits"} if own.kd_weight > 0 else {teacher}
    return Reads(frozenset({student, "logits"}), frozenset(known), generated or own.kd_weight > 0)


def task_terms(settings: TaskSettings, student: Outputs, teacher: Outputs, batch: Batch) -> Losses:
    """``ce`` and, with a positive ``kd_weight``, the teacher's terms."""
    if settings.kd_weight > 0:
        weights = task_weights(settings)
        return logit_terms(student, teacher, batch, settings.temperature, weights)
    return label_terms(student, batch)


def task_weights(settings: TaskSettings) -> dict[str, float]:
    """Weights of the terms that ``task_terms`` returns."""
    weights = {"ce": settings.ce_weight}
    if settings.kd_weight > 0:
        weights |= {"kd": settings.kd_weight, "generated": settings.kd_weight}
    return weights


def label_terms(student: Outputs, batch: Batch) -> Losses:
    """The shared term ``ce`` on the real rows; empty when the batch has none."""
    if batch.n_real == 0:
        return {}
    return {"ce": cross_entropy(student.logits[: batch.n_real], batch.targets)}


def logit_terms(
    student: Outputs, teacher: Outputs, batch: Batch, temperature: float, weights: dict[str, float]
) -> Losses:
    """The shared terms: ``ce`` and ``kd`` on the real rows, ``generated`` on the generated ones.

    Args:
        student: Its logits.
        teacher: Its logits.
        batch: The batch.
        temperature: T.
        weights: What the terms will be weighted with, which makes them faster.
    """
    base = slice(batch.n_base)
    logits = student.logits[base], teacher.logits[base]
    expected = cast(Weights, tuple(weights[name] for name in Terms._fields))
    found = kd_terms(*logits, batch.targets, temperature, expected)
    rows = {"ce": batch.n_real, "kd": batch.n_real, "generated": batch.n_generated}
    return {name: term for name, term in found._asdict().items() if rows[name]}
