"""``fskd.distill``: the command line's main job for networks and data handed over from Python."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from fskd.config import Runtime
from fskd.data.datasets.arrays import from_arrays, plain_images
from fskd.errors import SettingError
from fskd.models.checkpoint import load_weights
from fskd.options import settings_layer
from fskd.raw import merge
from fskd.resolve import resolve, validate
from fskd.results.store import Result, RunDir
from fskd.runs.prepare import Given
from fskd.runs.runner import run
from fskd.runs.screen import make_screen
from fskd.runs.session import Session
from fskd.types import DataSplits


def distill(
    teacher: nn.Module | Sequence[nn.Module] | Callable[[Tensor], Any] | str | None,
    student: nn.Module | str | Sequence[nn.Module],
    data: Any,
    *,
    test_data: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
        student: A network (trained in place and left in eval mode), several for online methods, or
            a name.
        data: Name of a data set, a pair (images, labels), or a map-style data set of such pairs.
            Images are uint8, or float in [0, 1].
        test_data: The same for testing; a fixed stratified quarter of ``data`` if None.
        mean: Per-channel mean that is subtracted from images handed over; 0 if None, so that
            networks see the images as they are, in [0, 1].
        std: Per-channel standard deviation that they are divided by; 1 if None.
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
    splits = _own_data(data, test_data, mean, std)
    hidden = None
    if not (unlabelled is None or isinstance(unlabelled, int | str | PurePath)):
        hidden = torch.from_numpy(plain_images(unlabelled, "unlabelled"))
    network = None if isinstance(teacher, str) else teacher
    modules: Sequence[nn.Module] = ()
    if not isinstance(student, str):
        modules = [student] if isinstance(student, nn.Module) else list(student)
    options = {
        "method": method, "generator": "none" if generator is None else generator,
        "fraction": fraction, "shots": shots, "n": n, "steps": steps, "epochs": epochs,
        "seed": seed, "device": device, "quiet": quiet,
        "unlabelled": unlabelled if hidden is None else "own",
        "dataset": data if splits is None else "npz",
        "teacher": None if network is not None else teacher,
        "student": type(modules[0]).__name__ if modules else student,
    }  # fmt: skip
    layer = merge(settings_layer(options, dashes=""), settings or {})
    given = Given(splits, network, modules, unlabelled=hidden)
    return _run(layer, layer.pop("runtime"), given, out)


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


def _own_data(
    data: Any, test_data: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> DataSplits | None:
    """Images handed over, with the normalisation asked for; None for a data set by name."""
    if isinstance(data, str | DataSplits):
        for name, value in (("test_data", test_data), ("mean", mean), ("std", std)):
            if value is not None:
                raise SettingError(name, "given", "None for a data set that has its own")
        return data if isinstance(data, DataSplits) else None
    splits = from_arrays(data, test_data)
    channels = splits.train.size[0]
    scale = {"mean": mean or (0.0,) * channels, "std": std or (1.0,) * channels}
    for name, values in scale.items():
        if len(values) != channels or (name == "std" and min(values) <= 0):
            sign = "positive " if name == "std" else ""
            raise SettingError(name, list(values), f"{channels} {sign}numbers, one per channel")
    shift, spread = (tuple(map(float, scale[name])) for name in ("mean", "std"))
    return DataSplits(*(replace(part, mean=shift, std=spread) for part in splits))


def _run(
    layer: Mapping[str, Any], runtime: Mapping[str, Any], given: Given, out: str | Path | None
) -> Result:
    config = resolve(layer)
    if given.data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"name": "own"})})
    if given.teacher is not None:
        given = given._replace(queries=None if config.teacher is None else config.teacher.queries)
        config = config.model_copy(update={"teacher": None})
    with tempfile.TemporaryDirectory() as temporary:
        folder = {"out": temporary if out is None else str(out)}
        settings = validate(Runtime, {**runtime, **folder}, "runtime")
        session = Session(settings, make_screen(settings.quiet))
        if out is None and session.fabric.world_size > 1:
            raise SettingError("out", None, "a folder, which several processes share")
        result = run(config, session, given)
        for i, net in enumerate(given.students):
            # A finished run is not repeated; the networks still get what it learned.
            name = "student" if i == 0 else f"peer{i}"
            load_weights(net, RunDir(Path(result.path)).path / f"{name}.safetensors", "student")
            net.eval()
    if out is None:
        return Result.from_json(result.to_json())
    return result
