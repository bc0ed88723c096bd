"""What a run may ask of its teacher: one line where it asks for more than the teacher can give."""

from fskd.config import RunConfig
from fskd.errors import SettingError
from fskd.methods.base import Method
from fskd.methods.compose import Joint
from fskd.methods.plan import Run
from fskd.models.taps import FeatureNet
from fskd.runs.teacher import Kind
from fskd.teachers.base import exact, members, offers, opaque
from fskd.teachers.table import Table


def check_asked(config: RunConfig, method: Joint, source: Kind) -> None:
    """SettingError unless the teacher can give what the methods ask for.

    Args:
        config: The settings.
        method: The methods; not yet built.
        source: The teacher.
    """
    for name, one in method.methods.items():
        own = Joint({name: one}).stretches()
        for run in (run for stretch in own for run in stretch.runs if run.asks):
            _check_run(name, one, run, source)
        if any(role.of == "teacher" for role in one.roles.values()):
            _require(isinstance(source, FeatureNet), name, source, "one network, to be made anew")
    if isinstance(source, Table):
        _check_table(config, method)


def _check_run(name: str, method: Method, run: Run, source: Kind) -> None:
    nets = members(source) if run.net == "teachers" else (source,)
    missing = sorted(tap for tap in run.taps if any(tap not in offers(net) for net in nets))
    _require(not missing, name, source, f"one that gives its {' and '.join(missing)}: a network")
    if method.needs.exact_logits:
        _require(all(map(exact, nets)), name, source, "a network, whose logits are known exactly")
    if run.input_grad:
        _require(not opaque(source), name, source, "a network, which gives gradients")
    if run.mode == "batch":
        _require(not opaque(source), name, source, "a network, which has batch statistics")


def _require(condition: bool, name: str, source: Kind, accepted: str) -> None:
    if not condition:
        kind = getattr(source, "kind", "one network")
        raise SettingError(f"method.{name}", f"{kind} as its teacher", accepted)


def _check_table(config: RunConfig, method: Joint) -> None:
    """A table knows the images of the training set as they are."""
    known = "teacher.table knows no other images than those of the training set"
    if config.data.augment.active:
        raise SettingError("data.augment", "images that are moved", f"no moves: {known}")
    if config.data.unlabelled is not None:
        raise SettingError("data.unlabelled", repr(config.data.unlabelled), f"none: {known}")
    if config.data.episodic is not None:
        raise SettingError("data.sampler", "'episodic'", f"another one: {known}")
    asking = [stretch for stretch in method.stretches() if stretch.asks]
    if config.generator is not None and any(stretch.generated for stretch in asking):
        raise SettingError("generator", f"'{config.generator.name}'", f"none: {known}")
    for name, one in method.methods.items():
        changes = type(one).views is not Method.views or type(one).relabel is not Method.relabel
        if changes or one.needs.unlabelled:
            raise SettingError("method", f"'{name}'", f"one without further rows: {known}")


def check_ranks(sampler: str, reads: frozenset[str], source: Kind) -> None:
    """SettingError unless a sampler can rank all images by the teacher.

    Args:
        sampler: Its name.
        reads: Taps that it reads.
        source: The teacher.
    """
    kind = getattr(source, "kind", "")
    if isinstance(source, Table):
        accepted = f"a sampler that needs no teacher: {kind} ranks nothing"
        raise SettingError("data.sampler", f"'{sampler}'", accepted)
    if missing := sorted(reads - offers(source)):
        accepted = f"a sampler that reads no {' and '.join(missing)}, which {kind} does not give"
        raise SettingError("data.sampler", f"'{sampler}'", accepted)
