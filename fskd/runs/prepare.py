"""From a configuration to everything that a run needs, so that every mistake shows before work."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from fskd.config import RunConfig
from fskd.data.splits import Subset
from fskd.data.unlabelled import Unlabelled
from fskd.errors import SettingError
from fskd.generators.base import Generator, generators
from fskd.methods.compose import Joint, join
from fskd.methods.needs import check_needs
from fskd.models.checkpoint import load_body
from fskd.models.sections import reinitialised
from fskd.models.taps import FeatureNet
from fskd.models.usable import check_rows
from fskd.procedures.base import procedure_of
from fskd.resolve import makes_images, needs_teacher, students_needed
from fskd.results.store import RunDir
from fskd.runs.asked import check_asked, check_ranks
from fskd.runs.hashes import code_hashes, file_hash, weights_hash
from fskd.runs.images import load_data, mismatches
from fskd.runs.networks import (
    check_network,
    feature_net,
    gives_probabilities,
    seeded_network,
)
from fskd.runs.ranking import choose_subset, known_ranking, make_sampler, ranking_run
from fskd.runs.rows import Rows, divide, unlabelled_hash, unlabelled_images
from fskd.runs.teacher import GivenTeacher, Kind, files_hash, given_hash, make_source
from fskd.seeding import derive
from fskd.teachers.base import members
from fskd.teachers.table import Table
from fskd.train.roles import Roles, make_roles
from fskd.train.task import DistillTask
from fskd.types import DataSplits, Ranking, Shapes


class Given(NamedTuple):
    """Parts handed over from Python instead of being named.

    Attributes:
        data: Images to train and test on.
        teacher: A trained network or several, used as they are if they are a ``FeatureNet`` or a
            ``Source``, else copied; or a black box.
        students: Networks to train, in place.
        queries: Most rows that this teacher may be asked.
        unlabelled: Images without labels, uint8 (N, C, H, W).
        logits: Which of several outputs of these networks their logits are.
    """

    data: DataSplits | None = None
    teacher: GivenTeacher | None = None
    students: Sequence[nn.Module] = ()
    queries: int | None = None
    unlabelled: Tensor | None = None
    logits: str | int | None = None


NOTHING_GIVEN = Given()


class Job(NamedTuple):
    """A run that is ready to start.

    Attributes:
        subset: Its examples; a stand-in of equal size while ``ranking`` is None.
        ranking: The order that the subset is a prefix of; None if the teacher has yet to make it.
        teacher: The teacher; its weights are not there yet if it is made by a run.
        rows: Rows of each kind a step.
        unlabelled: Images without labels, or None.
        queries: Most rows that the teacher may be asked; None for any number.
        notes: What is to be said of networks and weights before they are used, a line each.
        doubts: The same of what is probably wrong.
    """

    config: RunConfig
    data: DataSplits
    subset: Subset
    ranking: Ranking | None
    students: list[FeatureNet]
    teacher: Kind | None
    method: Joint
    roles: Roles
    generator: Generator | None
    rows: Rows
    unlabelled: Unlabelled | None
    steps: int
    folder: RunDir
    queries: int | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def task(self) -> DistillTask:
        """Everything that trains."""
        nets = {"student": self.students[0], **self.roles.own}
        return DistillTask(nets, self.method, self.roles.shared)


def pin(
    config: RunConfig, given: Given = NOTHING_GIVEN, ranking: Ranking | None = None
) -> RunConfig:
    """The configuration with hashes of data, order, checkpoints and networks handed over.

    So a key stands for the very images and weights, wherever they lie and whatever they are called.

    Args:
        config: The settings.
        given: Parts handed over from Python.
        ranking: The order of the examples; None if it follows from the teacher, whose settings
            are then in the key in its place.
    """
    hashes = dict(config.inputs_sha256)
    if ranking is not None:
        hashes["split"] = ranking.sha256
    hashes |= _data_hashes(config, given)
    hashes |= _teacher_hashes(config, given, ranking is None or needs_teacher(config.method))
    if config.student_init is not None:
        hashes["init"] = file_hash(Path(config.student_init).expanduser(), "student.init")
    if given.logits is not None:
        hashes["logits"] = str(given.logits)
    for i, student in enumerate(given.students):
        hashes[f"student{i}"] = weights_hash(student, trains=True)
    if not given.students:
        hashes |= code_hashes([config.student, *config.peers])
    if given.queries is not None and makes_images(config.method):  # which depend on it
        hashes["queries"] = str(given.queries)
    teacher = config.teacher
    while teacher is not None:  # of a chain, the code of each
        hashes |= code_hashes(teacher.names)
        teacher = teacher.teacher
    return config.model_copy(update={"inputs_sha256": hashes})


def _teacher_hashes(config: RunConfig, given: Given, asked: bool) -> dict[str, str]:
    """Of a teacher that is handed over, or of the files that it and its teachers are from."""
    if given.teacher is not None:
        return {"teacher": given_hash(given.teacher)} if asked else {}
    hashes, teacher, level = dict[str, str](), config.teacher, "teacher"
    while teacher is not None:
        if (found := files_hash(teacher, level)) is not None:
            return hashes | {level: found}
        if teacher.init is not None:
            setting = f"{level}.init"
            hashes[setting] = file_hash(Path(teacher.init).expanduser(), setting)
        teacher, level = teacher.teacher, level + ".teacher"
    return hashes


def _data_hashes(config: RunConfig, given: Given) -> dict[str, str]:
    """Of the images that are trained and tested on, and of unlabelled ones from elsewhere."""
    data = given.data or load_data(config)
    whole = hashlib.sha256(repr([part.identity for part in data]).encode()).hexdigest()
    hidden = unlabelled_hash(config.data, data.train, given.unlabelled)
    return {"data": whole} | ({} if hidden is None else {"unlabelled": hidden})


def identify(config: RunConfig, given: Given = NOTHING_GIVEN) -> tuple[RunConfig, Ranking | None]:
    """The configuration whose key is the run's, and the order of its examples.

    Args:
        config: The settings.
        given: Parts handed over from Python.

    Returns:
        The settings with all hashes (see ``pin``), and without a teacher that would only choose
        examples which a file has chosen; the order, or None if the teacher has yet to make it.
    """
    ranking = known_ranking(config, (given.data or load_data(config)).train)
    if ranking is not None and not needs_teacher(config.method):
        config = config.model_copy(update={"teacher": None})  # the file stands for its outputs
    return pin(config, given, ranking), ranking


def student_networks(
    config: RunConfig, data: DataSplits, given: Given, notes: list[str]
) -> list[FeatureNet]:
    """The students, freshly initialised unless given; what is to be said of them is noted."""
    needed, taps = students_needed(config.method), config.student_taps
    if given.students:
        if len(given.students) != needed:
            accepted = f"{needed} networks for the method {config.method.name}"
            raise SettingError("student", f"{len(given.students)} networks", accepted)
        if config.student_init is not None:
            accepted = "none: a network that was handed over has weights"
            raise SettingError("student.init", f"'{config.student_init}'", accepted)
        nets = [feature_net(net, taps, "student", given.logits) for net in given.students]
    else:
        names = [config.student, *(config.peers or [config.student] * (needed - 1))]
        nets = [
            seeded_network(
                name, data, "student" if i == 0 else "peers", config.seed, "student", i,
                taps=() if config.peers and i else taps,
            )
            for i, name in enumerate(names)
        ]  # fmt: skip
    for net in nets:
        notes += [f"student: {note}" for note in check_network(net, data, "student")]
    if config.student_init is not None:
        found = load_body(nets[0].net, Path(config.student_init).expanduser(), "student.init")
        notes += [f"student.init: {note}" for note in found]
        if len(nets) > 1:
            notes.append(f"student.init: the first of {len(nets)} students starts from it")
    return nets


def student_doubts(students: Sequence[FeatureNet], data: DataSplits) -> list[str]:
    """What is probably wrong with the students, a line each."""
    if not any(gives_probabilities(net, data) for net in students):
        return []
    return ["the student's outputs are probabilities (rows sum to one): drop its softmax"]


def check_ranking_teacher(config: RunConfig, data: DataSplits, given: Given) -> None:
    """FskdError unless there is a teacher that can give what the sampler reads."""
    source, reads = make_source(ranking_run(config), data, given.teacher), _reads(config)
    check_ranks(config.data.sampler.name, reads, source)
    source.tap_shapes(data.train.size, reads)


def _reads(config: RunConfig) -> frozenset[str]:
    return make_sampler(config.data).reads


def _check_procedure(
    method: Joint, student: FeatureNet, teacher: Kind | None, size: tuple[int, int, int]
) -> None:
    one = procedure_of(method.methods.values())
    if one is not None and teacher is not None:
        one.check(student, teacher, size)


def prepare(
    config: RunConfig,
    out: Path,
    given: Given = NOTHING_GIVEN,
    ranking: Ranking | None = None,
) -> Job:
    """Loads data and builds every part of a run, without training anything.

    Args:
        config: The settings.
        out: Folder of all runs.
        given: Parts handed over from Python.
        ranking: The order that the teacher made, where it takes a teacher.

    Raises:
        FskdError: One line about the first setting or file that does not fit.
    """
    data = given.data or load_data(config)
    config, known = identify(config, given)
    ranking = known or ranking
    if ranking is None:
        check_ranking_teacher(config, data, given)
    folder = RunDir(out / f"{config.label()}-{config.key()}")
    return build(config, data, folder, given, ranking)


def build(
    config: RunConfig,
    data: DataSplits,
    folder: RunDir,
    given: Given = NOTHING_GIVEN,
    ranking: Ranking | None = None,
) -> Job:
    """Every part of a run from its data and their order; see ``prepare``."""
    subset = choose_subset(config, data, ranking)
    notes: list[str] = []
    students = student_networks(config, data, given, notes)
    method, asks = join(config.method.parts, config.optim.ema), needs_teacher(config.method)
    teacher = make_source(config, data, given.teacher, notes) if asks else None
    doubts = mismatches(config, data) if asks and given.teacher is None else []
    doubts += student_doubts(students, data)
    if teacher is not None:
        check_asked(config, method, teacher)
    if isinstance(teacher, Table):
        teacher.choose(subset.train)
    hidden = unlabelled_images(config.data, data.train, subset, config.seed, given.unlabelled)
    shapes = Shapes(
        data.train.num_classes,
        len(subset.train),
        students[0].tap_shapes(data.train.size, method.reads("student")),
        None if teacher is None else teacher.tap_shapes(data.train.size, method.reads("teacher")),
        data.train.targets[subset.train],
        data.train.size,
        derive(config.seed, "method"),
        1 if teacher is None else len(members(teacher)),
    )
    for name, one in method.methods.items():
        check_needs(name, one.needs, shapes)
    _check_procedure(method, students[0], teacher, data.train.size)
    method.build(shapes)

    def fresh(net: FeatureNet, role: str) -> FeatureNet:
        if net is teacher or given.students:  # of which only the network is known
            return reinitialised(net, derive(config.seed, "init", "role", role))
        taps = config.student_taps
        return seeded_network(config.student, data, "student", config.seed, "role", role, taps=taps)

    roles = make_roles(method.roles, students, teacher, data.train.size, fresh)
    generator, scale = None, 1.0
    if config.generator is not None:
        name, settings = config.generator.parts[0]
        generator = generators.get(name)(settings)  # type: ignore[arg-type]
        generator.check(data.train.size)
        scale = generator.schedule.step_scale
    share = None if hidden is None else config.data.unlabelled_share
    rows = divide(config.optim.batch_size, generator, share, max(method.unlabelled_views, 1))
    for net in students:
        check_rows(net.net, data.train.size, config.optim.batch_size, "student")
    steps = config.budget.to_steps(len(subset.train), config.optim.batch_size, scale)
    job = Job(
        config, data, subset, ranking, students, teacher, method, roles,
        generator, rows, hidden, steps, folder,
        given.queries if config.teacher is None else config.teacher.queries,
        tuple(dict.fromkeys(notes)), tuple(doubts),
    )  # fmt: skip
    foreseen(job)
    return job


def rows_allowed(job: Job) -> int | None:
    """Rows that each network of the teacher may be asked about; None for any number."""
    if job.queries is None or job.teacher is None:
        return None
    return job.queries // len(members(job.teacher))


def foreseen(job: Job) -> int | None:
    """Rows that a procedure will ask each network of the teacher; None for those of the loop.

    Raises:
        SettingError: If it may not ask as many as it needs.
    """
    one = procedure_of(job.method.methods.values())
    if one is None:
        return None
    return one.queries(len(job.subset.train), job.steps, rows_allowed(job))
