"""A run's teacher from its settings: of which kind it is, and what stands for it in the key."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from fskd.config import RunConfig, TeacherConfig
from fskd.errors import SettingError
from fskd.models.checkpoint import load_weights
from fskd.models.taps import FeatureNet
from fskd.models.usable import check_kind
from fskd.resolve import needs_teacher
from fskd.runs.hashes import file_hash, held_hash, weights_hash
from fskd.runs.networks import check_network, feature_net, seeded_network
from fskd.teachers.base import Source
from fskd.teachers.black_box import (
    BlackBox,
    find_function,
    function_hash,
    function_name,
    takes_images,
)
from fskd.teachers.ensemble import Ensemble
from fskd.teachers.table import read_table
from fskd.types import DataSplits

Kind = FeatureNet | Source
# A network, several, or a black box, handed over from Python.
GivenTeacher = nn.Module | Sequence[nn.Module] | Callable[[Tensor], Any]


def several(given: GivenTeacher) -> Sequence[nn.Module]:
    """The networks that were handed over; none of a black box."""
    if isinstance(given, nn.Module):
        return (given,)
    return given if isinstance(given, Sequence) else ()


def given_hash(given: GivenTeacher) -> str:
    """What stands in the key for a teacher that was handed over; joined by ``+`` for several."""
    if nets := several(given):
        return "+".join(map(weights_hash, nets))
    known = function_hash(cast(Callable[..., Any], given))
    held = held_hash(given)
    return known if held is None else hashlib.sha256(f"{known} {held}".encode()).hexdigest()


def files_hash(teacher: TeacherConfig, level: str) -> str | None:
    """The same for a teacher from files; None for any other.

    Args:
        teacher: The settings.
        level: Their dotted name, for messages.
    """
    if teacher.table is not None:
        return file_hash(Path(teacher.table).expanduser(), f"{level}.table")
    found = [file_hash(Path(p).expanduser(), f"{level}.checkpoint") for p in teacher.checkpoints]
    return "+".join(found) or None


def teacher_runs(config: RunConfig) -> tuple[RunConfig, ...]:
    """The runs that make a run's teacher; none if it is from a file or a black box."""
    teacher = config.teacher
    if teacher is None or teacher.checkpoint is not None or teacher.table is not None:
        return ()
    return () if find_function(teacher.name) is not None else config.teacher_runs()


def about_teacher(config: RunConfig, given: GivenTeacher | None) -> dict[str, Any]:
    """Name and key of a teacher that no run made.

    Args:
        config: The settings with all hashes.
        given: The teacher handed over, if one was.
    """
    key = config.inputs_sha256.get("teacher")
    if given is not None:
        kinds = [type(net.net if isinstance(net, FeatureNet) else net) for net in several(given)]
        names = [kind.__name__ for kind in kinds] or [function_name(cast(Any, given))]
        return about_all([{"key": k, "name": n} for k, n in zip(_keys(key), names, strict=True)])
    teacher = cast(TeacherConfig, config.teacher)
    if teacher.checkpoint is None:
        code = config.inputs_sha256.get(f"code {teacher.name.partition(':')[0]}")
        return {"key": key or code, "name": teacher.name}
    rows = zip(_keys(key), teacher.names, teacher.checkpoints, strict=True)
    return about_all([{"key": k, "name": n, "checkpoint": file} for k, n, file in rows])


def _keys(key: str | None) -> list[str | None]:
    return [None] if key is None else list(key.split("+"))


def about_all(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One member as it is; several with their names and keys joined by ``+``."""
    if len(members) == 1:
        return members[0]
    about: dict[str, Any] = {n: "+".join(str(m[n]) for m in members) for n in ("key", "name")}
    sizes = {member.get("n_train") for member in members}
    if len(sizes) == 1 and None not in sizes:
        about |= {"n_train": sizes.pop()}
    return {**about, "members": list(members)}


def mark(about: dict[str, Any], fingerprint: str) -> str:
    """Short name for what a teacher says of some images."""
    return hashlib.sha256(f"{about['key']} {fingerprint}".encode()).hexdigest()[:12]


def make_source(
    config: RunConfig,
    data: DataSplits,
    given: GivenTeacher | None = None,
    notes: list[str] | None = None,
) -> Kind:
    """The teacher, with weights if they come from a file or from Python.

    Args:
        config: The settings.
        data: The images.
        given: The teacher handed over, if one was; networks are copied, since they will be frozen
            and moved, unless they are sources already.
        notes: Gets what is to be said of networks and weights.
    """
    notes = [] if notes is None else notes
    if isinstance(given, Source):
        return given
    if isinstance(given, FeatureNet):
        nets = [given]
    elif given is not None:
        nets = [copied(net) for net in several(given)]
        if not nets:
            return _black_box(cast(Callable[[Tensor], Any], given), data)
    elif config.teacher is None:
        raise SettingError("teacher", None, _wanted(config))
    else:
        if (source := _no_network(config.teacher, data)) is not None:
            return source
        nets = _networks(config.teacher, data, notes)
    for net in nets:
        notes += [f"teacher: {note}" for note in check_network(net, data, "teacher")]
    return nets[0] if len(nets) == 1 else Ensemble(nets)


def copied(net: nn.Module, taps: Sequence[str] = (), logits: str | int | None = None) -> FeatureNet:
    """A copy of a network that was handed over as a teacher, in the mode for one."""
    check_kind(net, "teacher", False)  # of which not all kinds can be copied
    return feature_net(copy.deepcopy(net), taps, "teacher", logits)


def _black_box(function: Callable[[Tensor], Any], data: DataSplits, name: str = "") -> BlackBox:
    if not takes_images(function):
        accepted = "a function of images alone that gives their class probabilities"
        raise SettingError("teacher", name or function_name(function), accepted)
    return BlackBox(function, data.train, name or function_name(function)).probe()


def _no_network(teacher: TeacherConfig, data: DataSplits) -> Source | None:
    """A table or a black box, if the settings name one."""
    function = None if teacher.table is not None else find_function(teacher.name)
    if function is None and teacher.table is None:
        return None
    kind = "a black box" if teacher.table is None else "a table"
    if teacher.data == "subset":
        raise SettingError("teacher.data", "'subset'", f"'full': {kind} is not trained here")
    if teacher.checkpoint is not None:
        raise SettingError("teacher.checkpoint", f"'{teacher.checkpoint}'", f"none: it is {kind}")
    if teacher.taps:
        raise SettingError("teacher.taps", list(teacher.taps), f"none: it is {kind}")
    if function is not None:
        return _black_box(function, data, teacher.name)
    path = Path(str(teacher.table)).expanduser()
    return read_table(path, len(data.train), data.train.num_classes)


def _networks(teacher: TeacherConfig, data: DataSplits, notes: list[str]) -> list[FeatureNet]:
    for name in teacher.names if len(teacher.names) > 1 else ():
        if find_function(name) is not None:
            accepted = "networks joined by +; a black box is a teacher of its own"
            raise SettingError("teacher.name", f"'{name}'", accepted)
    nets = [
        seeded_network(name, data, "teacher.name", 0, "teacher", taps=teacher.taps)
        for name in teacher.names
    ]
    for net, file in zip(nets, teacher.checkpoints, strict=False):  # all of them have one, or none
        found = load_weights(net.net, Path(file).expanduser(), "teacher.checkpoint")
        notes += [f"{Path(file).name}: {note}" for note in found]
    return nets


def _wanted(config: RunConfig) -> str:
    by_method = needs_teacher(config.method)
    who = config.method.name if by_method else f"the sampler {config.data.sampler.name}"
    return f"a teacher, since {who} needs one"
