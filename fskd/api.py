"""``fskd.distill``: the command line's main job for networks and data handed over from Python."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from fskd.config import RunConfig, Runtime
from fskd.data.datasets.arrays import from_arrays, plain_images
from fskd.errors import SettingError
from fskd.models.checkpoint import load_weights
from fskd.models.usable import check_kind, format_of, restore
from fskd.options import settings_layer
from fskd.raw import merge
from fskd.resolve import resolve, validate
from fskd.results.store import Result, RunDir
from fskd.runs.images import normalised, told
from fskd.runs.prepare import Given
from fskd.runs.runner import run
from fskd.runs.screen import Screen, make_screen
from fskd.runs.session import Session
from fskd.runs.teacher import copied, several
from fskd.types import DataSplits


def distill(
    teacher: nn.Module | Sequence[nn.Module] | Callable[[Tensor], Any] | str | None,
    student: nn.Module | str | Sequence[nn.Module],
    data: Any,
    *,
    test_data: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    logits: str | int | None = None,
    method: str = "kdplus",
    generator: str | None = "auto",
    fraction: float | None = None,
    shots: int | None = None,
    n: int | None = None,
    unlabelled: Any = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Result:
    """Distils a teacher into a student on part of a data set.

    Args:
        teacher: A trained network that maps images (rows, C, H, W) to logits (rows, K), a name
            from the catalogue (then it is trained first), or None for the default of the data set.
            Several networks, or names ``a+b``, are an ensemble. A function from images (rows, C, H,
            W) in [0, 1] to their class probabilities (rows, K) is a black box.
        student: A network (trained in place; precision, memory format and mode stay as they are),
            several for online methods, or a name.
        data: Name of a data set, a pair (images, labels), or a map-style data set of such pairs.
            Images are uint8, or float in [0, 1].
        test_data: The same for testing; if None, a fixed stratified quarter of ``data``, or
            another share with ``settings={"data": {"test_share": 0.1}}``.
        mean: Mean of each channel, in [0, 1], that is subtracted from images, or a number for one
            channel. If None, what the teacher's weights say if fskd wrote them; else 0 for images
            handed over, so that networks see them as they are, in [0, 1], and the data set's own
            for others.
        std: Standard deviation that they are divided by, likewise; 1 if None.
        logits: Which of several outputs of networks handed over their logits are: a position or a
            name. An output named ``logits`` is found without it.
        method: As ``--method``; ``a+b`` composes.
        generator: As ``--generator``; None switches generated points off.
        fraction: Share of the training set, in (0, 1].
        shots: Examples per class, instead.
        n: Examples in all, instead.
        unlabelled: Images without labels: ``rest`` of the training set, how many of it, a folder of
            pictures, or images like those of ``data``; none if None.
        steps: Optimiser updates.
        epochs: Passes over the subset, instead.
        seed: Split, initialisation, order and generator are all derived from it.
        out: Folder of the run's files; nothing is kept if None.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        settings: Any further settings, nested as in a YAML file; ``runtime`` included.
        quiet: Show no progress.

    Returns:
        The same result as the command line's, with ``path`` empty if nothing is kept.

    Raises:
        FskdError: One line about the first argument that does not fit.

    Example:
        >>> result = distill("cnn_tiny", "cnn_tiny", "digits", fraction=0.1, steps=2,
        ...                  settings={"teacher": {"budget": {"steps": 2}}})
        >>> result.n_train, result.steps
        (120, 2)
    """
    _check_networks(teacher, student)
    if test_data is not None and isinstance(data, str | DataSplits):
        raise SettingError("test_data", "given", "None for a data set that has its own")
    pictures = not (unlabelled is None or isinstance(unlabelled, int | str | PurePath))
    network = None if isinstance(teacher, str) else teacher
    modules: Sequence[nn.Module] = ()
    if not isinstance(student, str):
        modules = [student] if isinstance(student, nn.Module) else list(student)
    options = {
        "method": method, "generator": "none" if generator is None else generator,
        "fraction": fraction, "shots": shots, "n": n, "steps": steps, "epochs": epochs,
        "seed": seed, "device": device, "quiet": quiet,
        "unlabelled": "own" if pictures else unlabelled,
        "dataset": data if isinstance(data, str) else "npz",
        "teacher": None if network is not None else teacher,
        "student": type(modules[0]).__name__ if modules else student,
    }  # fmt: skip
    scale = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    layer = merge(settings_layer(options, dashes=""), {"data": scale} if scale else {})
    layer = merge(layer, settings or {})
    runtime, config = layer.pop("runtime"), resolve(layer)
    if network is not None:
        _check_no_source(layer.get("teacher"))
    given = Given(None, network, modules, logits=logits)
    if pictures:
        hidden = plain_images(unlabelled, "unlabelled", config.data.background)
        given = given._replace(unlabelled=torch.from_numpy(hidden))
    if not isinstance(data, str):
        given = given._replace(data=_own_data(data, test_data, config))
    return _run(config, runtime, given, out)


def _check_networks(teacher: object, student: object) -> None:
    """SettingError for anything that is neither a network nor a name."""
    several = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    nets = [one for one in several if isinstance(one, nn.Module)]
    other = teacher is None or isinstance(teacher, str) or callable(teacher)
    if (not nets and not other) or (nets and len(nets) < len(several)):
        accepted = "a torch.nn.Module, several, a function, a name or None"
        shown = [type(one).__name__ for one in several] if nets else repr(teacher)
        raise SettingError("teacher", shown, accepted)
    several = list(student) if isinstance(student, list | tuple) else [student]
    for one in several:
        if not isinstance(one, nn.Module) and not (isinstance(one, str) and one is student):
            raise SettingError("student", repr(one), "a torch.nn.Module, several, or a name")
    if not several or len({id(one) for one in several}) < len(several):
        raise SettingError("student", f"{len(several)} networks", "at least one, each of them once")
    if any(one is net for one in several for net in nets):
        raise SettingError("student", "the teacher itself", "a network of its own")


def _check_no_source(about: object) -> None:
    """SettingError for settings that say where the weights of a teacher handed over are from."""
    for name in ("checkpoint", "table", "init"):
        value = about.get(name) if isinstance(about, Mapping) else None
        if value is not None:
            accepted = "none: a teacher was handed over"
            raise SettingError(f"teacher.{name}", repr(value), accepted)


def _own_data(data: Any, test_data: Any, config: RunConfig) -> DataSplits:
    """Images handed over, normalised as is asked for or as the teacher's weights say."""
    known = told(config)
    if isinstance(data, DataSplits):
        return normalised(data, config, known)
    about = config.data
    splits = from_arrays(
        data,
        test_data,
        test_share=about.test_share,
        class_order=about.class_order,
        background=about.background,
    )
    channels = splits.train.size[0]
    mean, std = (0.0,) * channels, (1.0,) * channels
    splits = DataSplits(*(replace(p, mean=mean, std=std) for p in splits))
    return normalised(splits, config, known)


def _run(
    config: RunConfig, runtime: Mapping[str, Any], given: Given, out: str | Path | None
) -> Result:
    _check_kinds(given)
    if given.data is not None:  # what was asked of them is in their hash
        named = {"name": "own", "mean": None, "std": None, "test_share": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=named)})
    if given.teacher is not None:
        given = _with_teacher(given, config)
        config = config.model_copy(update={"teacher": None})
    formats = [format_of(net) for net in given.students]
    with tempfile.TemporaryDirectory() as temporary:
        folder = {"out": temporary if out is None else str(out)}
        settings = validate(Runtime, {**runtime, **folder}, "runtime")
        session = Session(settings, Screen() if settings.quiet else make_screen(False))
        if out is None and session.fabric.world_size > 1:
            raise SettingError("out", None, "a folder, which several processes share")
        try:
            result = run(config, session, given)
            for i, net in enumerate(given.students):
                # A finished run is not repeated; the networks still get what it learned.
                name = "student" if i == 0 else f"peer{i}"
                file = RunDir(Path(result.path)).path / f"{name}.safetensors"
                load_weights(getattr(net, "_orig_mod", net), file, "student")
        finally:
            for net, was in zip(given.students, formats, strict=True):
                restore(net, was)
    if out is None:
        return Result.from_json(result.to_json())
    return result


def _check_kinds(given: Given) -> None:
    """SettingError for networks of a kind of which not even the weights can be read."""
    teachers = [] if given.teacher is None else several(given.teacher)
    for part, nets in (("teacher", teachers), ("student", given.students)):
        for net in nets:
            check_kind(net, part, part == "student")


def _with_teacher(given: Given, config: RunConfig) -> Given:
    """Parts handed over with what the settings say of the teacher."""
    teacher, about = given.teacher, config.teacher
    taps = () if about is None else about.taps
    if teacher is not None and (taps or given.logits is not None) and several(teacher):
        nets = [copied(net, taps, given.logits) for net in several(teacher)]
        teacher = nets[0] if len(nets) == 1 else nets
    return given._replace(teacher=teacher, queries=None if about is None else about.queries)
