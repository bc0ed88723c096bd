"""The words in which a method says what it wants: passes, roles, players, terms, phases, needs."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from torch import Tensor

from fskd.methods.objective import NAMES

Mode = Literal["role", "eval", "batch"]
Family = Literal[
    "control", "logits", "mixing", "features", "relations", "online", "adversarial",
    "semi-supervised", "chains", "few-sample", "other",
]  # fmt: skip
# In the order in which they are shown, each with what its methods have in common.
FAMILIES: Final[Mapping[Family, str]] = {
    "control": "labels alone; what the others are compared with",
    "logits": "match what the teacher, or one that is made up, says of each image",
    "mixing": "learn between images, from points that a generator makes",
    "features": "match the teacher's maps, or how it answers to its input",
    "relations": "match how the rows of a batch, or of the data, relate to each other",
    "online": "several students, or branches of one, teach each other",
    "adversarial": "deceive, or share a loss with, a discriminator",
    "semi-supervised": "guess labels of unlabelled rows",
    "chains": "teach through networks between teacher and student",
    "few-sample": "make the student from the teacher, or train on made-up rows, with few images",
    "other": "of no family",
}
TRAINED = ("student", "roles", "method")
LOGITS = frozenset({"logits"})


class Pass(NamedTuple):
    """One network on one input.

    Attributes:
        name: Where the method finds what it gave.
        net: ``student``, ``teacher``, ``teachers`` (each of several) or one of the method's roles.
        taps: What is read: logits, embedding, stem, stages, pre.
        on: ``inputs``, or a map of an earlier pass, such as ``teacher.stages.1``.
        mode: ``role``: the student as the phase says, the teacher in eval mode; ``eval``;
            ``batch``: batch statistics, running ones unmoved.
        input_grad: Whether the inputs need a gradient (Jacobian matching).
    """

    name: str
    net: str
    taps: frozenset[str]
    on: str = "inputs"
    mode: Mode = "role"
    input_grad: bool = False


def student(*taps: str, mode: Mode = "role", input_grad: bool = False) -> Pass:
    """The student on the batch."""
    return Pass("student", "student", frozenset(taps), mode=mode, input_grad=input_grad)


def teacher(*taps: str, mode: Mode = "role", input_grad: bool = False) -> Pass:
    """The teacher on the batch."""
    return Pass("teacher", "teacher", frozenset(taps), mode=mode, input_grad=input_grad)


def each_teacher(*taps: str) -> Pass:
    """Each of several teachers on the batch, as ``step.each("teachers")``."""
    return Pass("teachers", "teachers", frozenset(taps))


class Role(NamedTuple):
    """A further network: made, moved, trained, saved and measured by the loop.

    Attributes:
        of: The network that it is made like, ``student`` or ``teacher``.
        weights: ``fresh``, of its own and newly drawn; ``copy``, of its own and as they are when
            training begins; ``shared``, the same parameters; ``ema``, an exponential moving average
            over the updates, buffers included.
        after: Only the section behind this stage, which is fed with maps: an index of the stages
            (negative from the end) or ``stem``; None for the whole network.
        upto: Only up to this stage; None for up to the logits.
        decay: Of an average.
        trains: Whether it is updated (fresh ones).
        peer: Whether it is a student of its own, of which the user may choose the network.
    """

    of: Literal["student", "teacher"] = "student"
    weights: Literal["fresh", "copy", "shared", "ema"] = "fresh"
    after: int | Literal["stem"] | None = None
    upto: int | None = None
    decay: float = 0.999
    trains: bool = True
    peer: bool = False


def every_step(step: int) -> bool:
    """A player's turn in every step."""
    return True


class Player(NamedTuple):
    """Who minimises terms: some of what trains, with an optimiser of its own if need be.

    Attributes:
        trains: As in ``Phase``; for ``main`` everything that no other player trains.
        optim: Settings over those of the run's optimiser, such as ``{"name": "adam", "lr": 1e-4}``.
        turn: Whether it moves in a step.
    """

    trains: tuple[str, ...] = TRAINED
    optim: Mapping[str, Any] = {}
    turn: Callable[[int], bool] = every_step


class Term(NamedTuple):
    """A scalar loss, its weight, and the player who minimises it."""

    value: Tensor
    weight: float = 1.0
    by: str = "main"


Terms = Mapping[str, Term]


class Phase(NamedTuple):
    """A stretch of training in which the same parameters are updated.

    Attributes:
        name: Passed on as ``Progress.phase``.
        share: Length relative to the other phases; the budget is divided in proportion, so that
            every method makes the same number of optimiser updates.
        trains: What is updated: ``student``, ``student.features`` (all but the classifier),
            ``roles`` or one of them by name, ``method`` or ``method.<submodule>``. Everything else
            is frozen, and a network of which nothing is trained runs in eval mode.
        passes: None for the method's.
        terms: Name of the function that makes this phase's own terms.
        objective: Terms of the objective that are learned in this phase.
        restart: Whether learning rate and momentum begin anew.
        lr_scale: Factor on the learning rate.
    """

    name: str = "main"
    share: float = 1.0
    trains: tuple[str, ...] = TRAINED
    passes: tuple[Pass, ...] | None = None
    terms: str = "terms"
    objective: frozenset[str] = frozenset(NAMES)
    restart: bool = True
    lr_scale: float = 1.0


class Needs(NamedTuple):
    """What a method cannot do without; told in one line before any network is trained.

    Attributes:
        stages: Least number of stages of student and teacher.
        equal_stages: Student and teacher have equally many stages.
        equal_channels: Their stages have equal channels, too.
        square: Images are square.
        teachers: Least number of teachers.
        unlabelled: Views of each unlabelled row; 0 if it needs no unlabelled rows.
        min_rows: Own terms are left out in a batch with fewer rows.
        exact_logits: A black box, whose logits are known up to a constant per row, will not do.
        one_process: It has memories, or players, that several processes cannot share.
        labels: Its own terms read labels, of batches in which the objective may learn none.
    """

    stages: int = 0
    equal_stages: bool = False
    equal_channels: bool = False
    square: bool = False
    teachers: int = 0
    unlabelled: int = 0
    min_rows: int = 0
    exact_logits: bool = False
    one_process: bool = False
    labels: bool = False
