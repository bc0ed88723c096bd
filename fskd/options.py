"""Settings with a name of their own on command lines and in ``fskd.distill``: one entry each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fskd.raw import Raw

DATA, NETS, TRAIN, RUN = "Data", "Networks", "Training", "Running"


class Option(NamedTuple):
    """What stands for a setting.

    Attributes:
        setting: Dotted name of the setting.
        help: What ``--help`` says.
        panel: Where ``--help`` says it.
        metavar: What stands for the value there.
        default: What holds without it, where that is worth saying.
        flag: Whether it takes no value.
    """

    setting: str
    help: str
    panel: str | None = None
    metavar: str | None = None
    default: str | None = None
    flag: bool = False


OPTIONS = {
    "method": Option("method", "Method; a+b composes, a,b runs both.", default="kdplus"),
    "generator": Option("generator", "Generated points: a name, auto (the method's own) or none."),
    "fraction": Option("data.fraction", "Share of the training set, in (0, 1].", DATA, "FLOAT"),
    "shots": Option("data.shots", "Examples per class.", DATA, "INT"),
    "n": Option("data.n", "Examples in all.", DATA, "INT"),
    "dataset": Option("data.name", "Data set.", DATA, default="digits"),
    "data_root": Option("data.root", "Folder or file of the data.", DATA),
    "sampler": Option("data.sampler", "Which examples are chosen.", DATA, default="stratified"),
    "unlabelled": Option(
        "data.unlabelled",
        "Images without labels: of the training set, or in a folder.",
        DATA,
        "rest|INT|DIR",
    ),
    "teacher": Option("teacher.name", "Teacher network; a+b for several.", NETS),
    "student": Option("student", "Student network.", NETS),
    "student_init": Option("student.init", "Weights that the student starts from.", NETS),
    "teacher_checkpoint": Option(
        "teacher.checkpoint", "Teacher weights (.safetensors, .pth).", NETS
    ),
    "teacher_init": Option(
        "teacher.init", "Weights that the teacher's training starts from, any head.", NETS
    ),
    "teacher_data": Option("teacher.data", "Train the teacher on: full or subset.", NETS),
    "steps": Option("budget.steps", "Optimiser updates.", TRAIN, "INT"),
    "epochs": Option("budget.epochs", "Instead of steps: passes over the subset.", TRAIN, "FLOAT"),
    "seed": Option("seed", "First seed.", TRAIN, "INT", default="0"),
    "out": Option("runtime.out", "Folder of all runs.", RUN, default="runs"),
    "device": Option("runtime.device", "auto, cpu, cuda or cuda:N.", RUN),
    "precision": Option("runtime.precision", "32-true or bf16-mixed.", RUN),
    "track": Option("runtime.track", "tensorboard, mlflow or wandb; a,b for both.", RUN),
    "strict": Option(
        "runtime.strict", "Stop at what is doubtful about teacher or data.", RUN, flag=True
    ),
    "quiet": Option("runtime.quiet", "Only the final table.", RUN, flag=True),
    "debug": Option("runtime.debug", "Full tracebacks, NaN checks.", RUN, flag=True),
}
"""Name, with underscores -> what it stands for, in the order of ``--help``."""


def settings_layer(
    given: Mapping[str, Any], overrides: Sequence[str] = (), dashes: str = "--"
) -> "Raw":
    """Options that were given, then ``--set``, as one nested mapping.

    Args:
        given: Name in ``OPTIONS`` -> value; None for none.
        overrides: What follows ``--set``.
        dashes: What stands before a name in an error.

    Example:
        >>> settings_layer({"fraction": 0.1, "shots": None}, ["optim.lr=1"])
        {'data': {'fraction': 0.1}, 'optim': {'lr': 1}}
    """
    from fskd.raw import merge, nested, parse_override, refuse_together  # late: --help needs none

    refuse_together(given, dashes)
    layer: Raw = {}
    for name, value in given.items():
        if value is not None:
            layer = merge(layer, nested(OPTIONS[name].setting, value))
    for text in overrides:
        layer = merge(layer, parse_override(text))
    return layer
