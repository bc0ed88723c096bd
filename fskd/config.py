"""Settings of a run: defaults, YAML and overrides -> one frozen, validated RunConfig and its key.

Layers, weakest first: built-in defaults, the data set's defaults, a YAML file, named options,
``--set a.b=value``. Everything that determines a result is in ``RunConfig``; what must not change
it beyond rounding (device, precision, workers, folders) is in ``Runtime`` and outside the key.
"""

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fskd.data.augment import AugmentSettings
from fskd.raw import PLACES, SIZE
from fskd.settings import (
    FULL_SAMPLER,
    LABELS_ONLY,
    BudgetConfig,
    Component,
    DataConfig,
    OptimConfig,
)
from fskd.types import Settings, later


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
    init: str | None = later(
        None, description="Weights it starts from, but for its head; not in the key (its hash is)."
    )
    taps: tuple[str, ...] = later((), description="Modules whose outputs are its stages.")

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
        sources = ("checkpoint", "table", "init")
        if len(given := [name for name in sources if getattr(self, name) is not None]) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        if self.init is not None and names > 1:
            raise ValueError(f"init is of one network, not of {names}")
        return self


class RunConfig(Settings):
    """Everything that determines a result.

    ``student_init`` and ``student_taps`` are written as ``student.init`` and ``student.taps``.

    Attributes:
        inputs_sha256: Hashes of what names do not determine: data, order of the examples,
            checkpoints, networks.
    """

    data: DataConfig
    student: str
    student_init: str | None = later(
        None, description="Weights it starts from, but for its head; not in the key (its hash is)."
    )
    student_taps: tuple[str, ...] = later((), description="Modules whose outputs are its stages.")
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
        for place in PLACES:
            dump["data"].pop(place)
        if self.data.split_file is None or "split" in self.inputs_sha256:
            dump["data"].pop("split_file")
        if "unlabelled" in self.inputs_sha256:
            dump["data"].pop("unlabelled", None)
        if "init" in self.inputs_sha256:
            dump.pop("student_init", None)
        self._drop_teacher_files(dump["teacher"])
        return dump

    def _drop_teacher_files(self, teacher: dict[str, Any] | None) -> None:
        """Leaves hashes in place of the files that a teacher, or a teacher of it, is from."""
        level = "teacher"
        while teacher is not None:
            if teacher.pop("checkpoint") is not None or "table" in teacher:
                kept = {"name": teacher["name"], "sha256": self.inputs_sha256.get(level)}
                if "queries" in teacher:
                    kept["queries"] = teacher["queries"]
                teacher.clear()
                teacher.update(kept)
                break
            if f"{level}.init" in self.inputs_sha256:
                teacher.pop("init", None)
            teacher, level = teacher["teacher"], level + ".teacher"

    def key(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the canonical JSON."""
        text = json.dumps(self.payload(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """Readable name of the run's folder, without the key."""
        student = re.sub(r"[^\w.+-]", "_", self.student)
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
            student_init=teacher.init,
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
    strict: bool = Field(False, description="What is doubtful about the inputs is an error.")
    quiet: bool = False
    debug: bool = False

    @field_validator("track", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return given.split(",") if isinstance(given, str) else given
