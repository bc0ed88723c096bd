"""Settings of a run: defaults, YAML and overrides -> one frozen, validated RunConfig and its key.

Layers, weakest first: built-in defaults, the data set's defaults, a YAML file, named options,
``--set a.b=value``. Everything that determines a result is in ``RunConfig``; what must not change
it beyond rounding (device, precision, workers, folders) is in ``Runtime`` and outside the key.
"""

import hashlib
import json
import math
import re
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_serializer, model_validator

from fskd.data.augment import AugmentSettings
from fskd.data.samplers.base import SamplerSettings
from fskd.data.samplers.episodic import EpisodicSettings
from fskd.raw import LENGTH, SIZE, given_together
from fskd.types import Settings, later


class Component(Settings):
    """A method, generator or sampler by name, with the settings of each of its parts.

    Attributes:
        name: Registry name, or several joined by ``+`` (methods only).
        parts: (name, settings) of each.
    """

    name: str
    parts: tuple[tuple[str, SerializeAsAny[Settings]], ...]

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        dumped = {name: settings.model_dump(mode="json") for name, settings in self.parts}
        own = dumped if len(dumped) > 1 else next(iter(dumped.values()))
        return {"name": self.name, **own}


UNLABELLED = "rest, a number of training images, or a folder of images"
FULL_SAMPLER = Component(name="stratified", parts=(("stratified", SamplerSettings()),))


class DataConfig(Settings):
    """Which examples are trained on, and how they are moved."""

    name: str
    root: str | None = Field(None, description="File or folder of the data; not in the key.")
    image_size: int | None = Field(None, ge=8, le=1024, description="Side of folder images.")
    download: bool = Field(False, description="Fetch the data if absent; not in the key.")
    sampler: Component
    fraction: float | None = Field(None, gt=0, le=1)
    shots: int | None = Field(None, ge=1, description="Examples per class.")
    n: int | None = Field(None, ge=1, description="Examples in all.")
    split_seed: int = Field(ge=0)
    splits: str | None = Field(
        None, description="Folder of split files, or none to compute; not in the key."
    )
    split_file: str | None = Field(
        None,
        description="An order to use in place of the sampler's; not in the key (its hash is).",
    )
    val: int = Field(0, ge=0, description="Validation examples, taken from outside the subset.")
    augment: AugmentSettings = AugmentSettings()
    unlabelled: str | int | None = later(
        None,
        description="Images without labels: rest, a number of training images, or a folder (not in"
        " the key; the hash of its images is).",
    )
    unlabelled_share: float = later(
        0.5, gt=0, lt=1, description="Their share of the rows that are not generated."
    )

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _number_or_place(cls, given: Any) -> Any:
        if given is None or given == "rest":
            return given
        if isinstance(given, str) and re.fullmatch(r"[+-]?\d+", given):
            given = int(given)
        if isinstance(given, PurePath):
            given = str(given)
        whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
        if not (whole or (isinstance(given, str) and given.strip())):
            raise ValueError(f"Input should be {UNLABELLED}")
        return given

    @model_validator(mode="after")
    def _one_size(self) -> "DataConfig":
        if given := given_together(dict(self)):
            *first, last = SIZE
            either = f"{', '.join(first)} and {last}"
            raise ValueError(f"give one of {either}, not {' and '.join(given)}")
        return self

    @property
    def episodic(self) -> EpisodicSettings | None:
        """The settings of an episodic run; None for any other."""
        settings = self.sampler.parts[0][1]
        return settings if isinstance(settings, EpisodicSettings) else None

    @property
    def size_label(self) -> str:
        """Short name of the subset's size, as used in folder names and tables."""
        if self.shots is not None:
            ways = "" if self.episodic is None else f"{self.episodic.ways}way-"
            return f"{ways}{self.shots}shot"
        if self.n is not None:
            return f"n{self.n}"
        return f"{100 * (1.0 if self.fraction is None else self.fraction):g}pct"


ADAM_LR = 1e-3
# A teacher of a run learns from labels alone, whatever its students see.
LABELS_ONLY = {"unlabelled": None, "unlabelled_share": 0.5}


class OptimConfig(Settings):
    """The optimiser and its learning rate over time; momentum is SGD's."""

    lr: float = Field(0.2, gt=0, description="Peak learning rate; 0.001 with adam and adamw.")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["onecycle", "cosine", "milestones", "constant"] = "onecycle"
    warmup: float = Field(0.3, ge=0, lt=1, description="Share of steps with a rising rate.")
    milestones: tuple[float, ...] = Field(
        (0.625, 0.75, 0.875), description="Shares of the steps after which the rate drops."
    )
    decay: float = Field(0.1, gt=0, le=1, description="Factor at a milestone.")
    batch_size: int = Field(64, ge=1, description="Student rows a step, generated ones included.")
    grad_clip: float | None = Field(None, gt=0, description="Largest gradient norm.")
    name: Literal["sgd", "adam", "adamw"] = later("sgd")
    body_lr: float = later(
        1.0, ge=0, le=1, description="Rate of all but the classifier, relative to lr."
    )
    ema: float | None = later(
        None, gt=0, lt=1, description="Decay of an average of the student, measured beside it."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, given: Any) -> Any:
        # Adam's steps are a thousand times as long as the gradients that SGD would take.
        if isinstance(given, dict) and given.get("name") in ("adam", "adamw"):
            return {"lr": ADAM_LR, **given}
        return given

    @model_validator(mode="after")
    def _legal(self) -> "OptimConfig":
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        return self


class BudgetConfig(Settings):
    """Length of training: optimiser steps, or epochs that are converted to steps.

    One epoch is as many student rows as there are training examples, whichever rows they are, so
    that arms with the same epochs make the same number of updates and student passes.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> "BudgetConfig":
        if sum(getattr(self, name) is not None for name in LENGTH) != 1:
            raise ValueError(f"give exactly one of {' and '.join(LENGTH)}")
        return self

    def to_steps(self, n_train: int, batch_size: int, scale: float = 1.0) -> int:
        """Optimiser steps for a training set of ``n_train`` examples."""
        if self.steps is not None:
            return max(math.ceil(self.steps * scale), 1)
        epochs = self.epochs or 0.0  # the validator leaves no other case
        return max(math.ceil(epochs * n_train / batch_size * scale), 1)


class TeacherConfig(Settings):
    """A teacher: a checkpoint, or a run of its own that is made once and reused.

    With a ``teacher`` of its own it is a teacher assistant (a chain). ``a+b`` names several
    networks, whose seeds are ``seed``, ``seed`` + 1 and so on, and whose checkpoints are joined by
    ``+``, too. ``package.module:function`` may be a black box (see ``fskd.teachers``).
    """

    name: str
    checkpoint: str | None = Field(None, description="Weights file; not in the key (its hash is).")
    data: Literal["full", "subset"] = Field("full", description="What it is trained on.")
    seed: int = Field(
        1000, ge=0, description="Far from the runs' seeds: no student starts as its teacher."
    )
    method: Component
    generator: Component | None = None
    augment: AugmentSettings = AugmentSettings()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig(epochs=40)
    teacher: "TeacherConfig | None" = None
    table: str | None = later(
        None, description="Its probabilities of the training images; not in the key (its hash is)."
    )
    queries: int | None = later(None, ge=1, description="Most rows it may be asked in training.")

    @property
    def names(self) -> list[str]:
        """Networks of its members."""
        return self.name.split("+")

    @property
    def checkpoints(self) -> list[str]:
        """Weights files of its members."""
        if self.checkpoint is None:
            return []
        return self.checkpoint.split("+") if len(self.names) > 1 else [self.checkpoint]

    @model_validator(mode="after")
    def _fits(self) -> "TeacherConfig":
        files, names = len(self.checkpoints), len(self.names)
        if files and files != names:
            raise ValueError(f"{names} networks need {names} checkpoints joined by +, not {files}")
        if self.table is not None and self.checkpoint is not None:
            raise ValueError("give one of checkpoint and table")
        return self


class RunConfig(Settings):
    """Everything that determines a result.

    Attributes:
        inputs_sha256: Hashes of what names do not determine: data, order of the examples,
            checkpoints, networks.
    """

    data: DataConfig
    student: str
    peers: tuple[str, ...] = Field((), description="Networks of further students (online KD).")
    teacher: TeacherConfig | None = None
    method: Component
    generator: Component | None = None
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig(steps=800)
    seed: int = Field(0, ge=0)
    inputs_sha256: dict[str, str] = Field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """What the key is computed from: the settings without places."""
        dump = self.model_dump(mode="json")
        for place in ("root", "download", "splits"):
            dump["data"].pop(place)
        if self.data.split_file is None or "split" in self.inputs_sha256:
            dump["data"].pop("split_file")
        if "unlabelled" in self.inputs_sha256:
            dump["data"].pop("unlabelled", None)
        teacher, level = dump["teacher"], "teacher"
        while teacher is not None:
            if teacher.pop("checkpoint") is not None or "table" in teacher:
                kept = {"name": teacher["name"], "sha256": self.inputs_sha256.get(level)}
                if "queries" in teacher:
                    kept["queries"] = teacher["queries"]
                teacher.clear()
                teacher.update(kept)
                break
            teacher, level = teacher["teacher"], level + ".teacher"
        return dump

    def key(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the canonical JSON."""
        text = json.dumps(self.payload(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """Readable name of the run's folder, without the key."""
        student = self.student.replace("/", "_").replace(":", "_")
        parts = (self.data.name, student, self.method.name, self.data.size_label, f"s{self.seed}")
        return "-".join(parts)

    def teacher_run(self) -> "RunConfig":
        """The run that makes this run's teacher, the first of several."""
        return self.teacher_runs()[0]

    def teacher_runs(self) -> "tuple[RunConfig, ...]":
        """The runs that make this run's teachers, each with a seed of its own."""
        if self.teacher is None:
            raise ValueError("this run has no teacher")
        names = self.teacher.names
        return tuple(self._member_run(self.teacher, name, i) for i, name in enumerate(names))

    def _member_run(self, teacher: TeacherConfig, name: str, number: int) -> "RunConfig":
        data = self.data
        whole = {**dict.fromkeys(SIZE), "split_seed": 0, "split_file": None}
        update: dict[str, Any] = {"augment": teacher.augment, "val": 0, **LABELS_ONLY}
        if teacher.data == "full":
            update |= whole | {"sampler": FULL_SAMPLER}
        inputs = {
            name.removeprefix("teacher."): value
            for name, value in self.inputs_sha256.items()
            if name == "data" or name.startswith("teacher.")
        }
        return RunConfig(
            data=data.model_copy(update=update),
            student=name,
            teacher=teacher.teacher,
            method=teacher.method,
            generator=teacher.generator,
            optim=teacher.optim,
            budget=teacher.budget,
            seed=teacher.seed + number,
            inputs_sha256=inputs,
        )


class Runtime(Settings):
    """How a run is carried out; not in the key, since it should not change results.

    Beyond rounding, several processes change what BatchNorm and losses over a batch see: each
    process normalises and relates its own rows. Results record processes and precision.
    """

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    devices: int = Field(1, ge=1, description="Processes (one per device).")
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = Field(False, description="Compile the students with torch.compile.")
    channels_last: bool = Field(True, description="Memory layout of networks; faster.")
    workers: int = Field(2, ge=0, description="Decoding processes for images on disk.")
    out: str = Field("runs", description="Folder of all runs.")
    save_every: float = Field(10.0, ge=0, description="Seconds between saved states.")
    log_every: int = Field(20, ge=1, description="Steps between lines of metrics.jsonl.")
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="Trackers that get the lines of metrics.jsonl and the measures, too."
    )
    quiet: bool = False
    debug: bool = False

    @field_validator("track", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return given.split(",") if isinstance(given, str) else given
