"""The interface of a distillation method.

A method is blind to networks. It says as data which passes it wants (a network, its input, the taps
that are read), and turns what they gave into named losses with weights. The step makes the passes,
so it may share, cache or count them; the method owns no optimiser, no loader and no schedule.
Adapters, memories and heads are ordinary submodules and buffers, so device placement, checkpoints
and optimiser membership come free.

Labels and the teacher's soft targets are not the method's concern: every run has one ``Objective``
of ``ce``, ``kd`` and ``generated`` (see ``fskd.methods.objective``), to which a method adds its own
terms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.methods.objective import Objective
from fskd.methods.words import Family, Needs, Pass, Phase, Player, Role, Terms
from fskd.registry import Registry
from fskd.types import Batch, Outputs, Progress, Settings, Shapes, Tools

Rows = Literal["base", "real"]


class BareSettings(Settings):
    """Settings of a method, none of them given; subclasses add their own."""

    def objective(self) -> Objective:
        """What is learned from labels and soft targets, from the settings of those names."""
        own = {name: getattr(self, name) for name in Objective._fields if hasattr(self, name)}
        return Objective(**own)


class MethodSettings(BareSettings):
    """Settings of methods that add terms of their own to the labels and, if asked, to KD."""

    ce_weight: float = Field(1.0, ge=0)
    kd_weight: float = Field(0.0, ge=0)
    temperature: float = Field(4.0, gt=0, description="Of the KD term.")


class Step:
    """What the passes of one step gave, as a method sees it.

    ``step.student`` and ``step.teacher`` are the passes of those names, ``step["x"]`` any other;
    all of them hold the rows that the method asked for (``Method.rows``).

    Args:
        outputs: What each pass gave for all rows, several results where it was each teacher.
        batch: The batch, with all rows.
        progress: Where training stands.
        rows: The rows shown; all if None.
    """

    def __init__(
        self,
        outputs: Mapping[str, Outputs | tuple[Outputs, ...]],
        batch: Batch,
        progress: Progress,
        rows: slice | None = None,
    ) -> None:
        self.batch, self.progress = batch, progress
        self._outputs, self._rows = outputs, rows

    def __getitem__(self, name: str) -> Outputs:
        (found,) = self.each(name)
        return found

    def each(self, name: str) -> tuple[Outputs, ...]:
        """What each of several teachers gave."""
        found = self._outputs[name]
        several = (found,) if isinstance(found, Outputs) else found
        return several if self._rows is None else tuple(one.rows(self._rows) for one in several)

    @property
    def student(self) -> Outputs:
        """The pass of that name."""
        return self["student"]

    @property
    def teacher(self) -> Outputs:
        """The pass of that name."""
        return self["teacher"]

    def on(self, part: str) -> "Step":
        """The same for other rows: real, base, unlabelled, generated, or the name of a view."""
        return Step(self._outputs, self.batch, self.progress, self.batch.part(part))


class Method(nn.Module):
    """Base class of all methods; see the module docstring.

    What is data (passes, roles, players, phases, needs) is known from the settings alone, before
    any network is built: class attributes, or properties where it depends on a setting. ``build``
    may still add passes and roles that depend on the networks' depth.

    Class attributes:
        Settings: The settings class.
        family: Its group in tables of all methods.
        passes: Passes that its terms read; those of the objective need not be named.
        roles: Further networks by name.
        players: Who minimises what, besides the run's optimiser.
        phases: In order; the last one is shared with other methods in a composition.
        labelled: Passes or networks whose logits learn the labels.
        rows: What its terms see: ``base`` (real, unlabelled and generated rows) or ``real``.
        unit: Own terms on the labels' scale. The total is divided by the sum of their weights and
            the objective's, so that arms share an effective learning rate; terms on another scale
            (features, relations) keep their published ratio to the label terms.
        needs: What it cannot do without.
        default_generator: Registry name of the generator used unless the run sets another.
        defaults: Run settings that suit the method, nested as in a run configuration; a file,
            options and ``--set`` win over them.
        example: Networks with which it can be tried where a student like its teacher will not do.

    Args:
        settings: An instance of ``Settings``.
    """

    Settings: ClassVar[type[BareSettings]] = MethodSettings
    family: ClassVar[Family] = "other"
    settings: BareSettings
    shapes: Shapes
    rows: Rows = "base"
    unit: frozenset[str] = frozenset()
    needs: Needs = Needs()
    default_generator: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}
    example: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: BareSettings) -> None:
        super().__init__()
        self.settings = settings

    @property
    def passes(self) -> Sequence[Pass]:
        """Passes that its terms read; those of the objective need not be named."""
        return ()

    @property
    def roles(self) -> Mapping[str, Role]:
        """Further networks by name."""
        return {}

    @property
    def players(self) -> Mapping[str, Player]:
        """Who minimises what, besides the run's optimiser (``main``)."""
        return {}

    @property
    def phases(self) -> Sequence[Phase]:
        """In order; the last one is shared with other methods in a composition."""
        return (Phase(),)

    @property
    def labelled(self) -> Sequence[str]:
        """Passes or networks whose logits learn the labels."""
        return ("student",)

    def build(self, shapes: Shapes) -> None:
        """Makes adapters and buffers; ``self.shapes`` is there already."""

    def begin(self, tools: Tools) -> None:
        """Called when a phase begins; what it changes must live in buffers."""

    def views(self, batch: Batch, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Further rows by name, appended to the batch. Only real rows are copied."""
        return {}

    def relabel(self, batch: Batch, ask: Callable[[Tensor], Tensor], rng: torch.Generator) -> Batch:
        """Other rows and soft labels in the place of the base rows, before the passes.

        Args:
            batch: The rows drawn.
            ask: The student's logits for some inputs, without gradient and with batch statistics.
            rng: CPU generator of this step.
        """
        return batch

    def terms(self, step: Step) -> Terms:
        """Own losses by name. A term without rows is left out."""
        return {}

    def measured(self, step: Step) -> Mapping[str, Tensor]:
        """Logits that are evaluated besides the student's, from its passes in eval mode."""
        return {}


methods: Registry[type[Method]] = Registry("method", "fskd.methods", "fskd.procedures")


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
