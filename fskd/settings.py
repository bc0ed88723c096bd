"""Sections of a run's settings: parts by name, data, optimiser and length."""

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
    mean: tuple[float, ...] | None = later(
        None, description="Subtracted from each channel of images in [0, 1]; the data's if none."
    )
    std: tuple[float, ...] | None = later(None, description="What they are then divided by.")
    background: str = later("white", description="Colour behind transparent images.")
    on_error: Literal["stop", "skip"] = later(
        "stop", description="What is done about image files that cannot be read."
    )
    test_share: float | None = later(
        None, gt=0, lt=1, description="Set aside where there is no test part; 0.25 if none."
    )
    class_order: Literal["natural", "sorted"] = later(
        "natural", description="Of class names: 2 before 10, or sorted as text (torchvision)."
    )
    cache_gib: float = Field(
        10.0, ge=0, description="Room on disk for decoded images, in GiB; not in the key."
    )
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

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_channel(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int | float) else given

    @field_validator("mean")
    @classmethod
    def _in_range(cls, given: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if given is not None and not all(0 <= value <= 1 for value in given):
            raise ValueError("Input should be in [0, 1], the range of the images (divide by 255?)")
        return given

    @field_validator("std")
    @classmethod
    def _positive(cls, given: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if given is not None and not all(0 < value <= 1 for value in given):
            raise ValueError("Input should be in (0, 1], on the images' scale (divide by 255?)")
        return given

    @field_validator("background")
    @classmethod
    def _colour(cls, given: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(given)
        except ValueError:
            raise ValueError("Input should be a colour such as white, gray or #808080") from None
        return given

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
