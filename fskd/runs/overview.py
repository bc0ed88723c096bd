"""All methods in one table: family, paper, what each needs, and what it costs.

Nothing is written by hand. Needs and networks follow from what a method says of itself, costs from
the plan of a run with its default settings and generator (``fskd.runs.estimate``).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fskd.citation import Citation, citation
from fskd.methods.base import Method, methods
from fskd.methods.plan import Stretch
from fskd.methods.words import FAMILIES, LOGITS, Family, Needs, Role
from fskd.resolve import needs_teacher, procedure, resolve
from fskd.runs.batches import batch_maker
from fskd.runs.estimate import cost, real_rows
from fskd.runs.prepare import Job, prepare
from fskd.teachers.base import members

# So many that shares of phases are exact and answers that are asked once do not count.
STEPS = 10_000
# In the words of the table; {} is a number. A need that is not here is shown by its name.
WORDS: Mapping[str, str] = {
    "stages": "{} stages",
    "equal_stages": "equal stages",
    "equal_channels": "equal widths",
    "square": "square images",
    "teachers": "{} teachers",
    "unlabelled": "unlabelled rows",
    "min_rows": "{} rows a step",
    "exact_logits": "no black box",
    "one_process": "one process",
}


class Entry(NamedTuple):
    """A method.

    Attributes:
        name: Its name.
        family: Its family.
        paper: Where it is from; None for a baseline or an invention of ours.
        needs: What it cannot do without, a few words each.
        rows: Rows through each student, per row drawn, as results count them.
        networks: The students and whatever else runs in training.
        queries: Rows that a teacher is asked about per row drawn, where no image comes twice.
        remembered: The same where images are not moved at random, so that a teacher whose logits
            are enough is asked about each of them only once; that once does not count.
    """

    name: str
    family: Family
    paper: Citation | None
    needs: tuple[str, ...]
    rows: float
    networks: str
    queries: float
    remembered: float

    @property
    def asked(self) -> str:
        """Both numbers of queries, or one if they are equal."""
        several = round(self.queries, 2) != round(self.remembered, 2)
        return short(self.queries) + (f" ({short(self.remembered)})" if several else "")


def overview() -> list[Entry]:
    """Every registered method, by family and name."""
    found = [entry(name) for name in methods.names()]
    order = list(FAMILIES)
    return sorted(found, key=lambda one: (order.index(one.family), one.name))


def entry(name: str) -> Entry:
    """What there is to say of a method."""
    job, still = (_job(name, moved) for moved in (True, False))
    counts, known = cost(job), cost(still).teacher_queries
    in_turn = _trainings(job)  # each with the budget of the run
    drawn = STEPS * job.config.optim.batch_size / in_turn
    kind = methods.get(name)
    return Entry(
        name,
        kind.family,
        citation(kind.__doc__),
        (*_read(job, job.method.methods[name]), *_asked_for(job.method.methods[name].needs)),
        counts.student_rows / drawn,
        _networks(job) if in_turn == 1 else f"{in_turn} in turn + teacher",
        counts.teacher_queries / drawn,
        known / drawn,
    )


def example(name: str) -> dict[str, Any]:
    """Settings of a small run of a method with networks and data that it can do with."""
    kind = methods.get(name)
    needs = kind(kind.Settings()).needs
    data = {"name": "digits", "shots": 2} | ({"unlabelled": "rest"} if needs.unlabelled else {})
    teacher = {"teacher": "+".join(["cnn_small"] * needs.teachers)} if needs.teachers > 1 else {}
    return {"method": name, "student": "cnn_small", "data": data, **teacher, **kind.example}


def short(number: float) -> str:
    """At most two digits behind the point.

    Example:
        >>> short(1.0), short(1 / 9), short(2.5)
        ('1', '0.11', '2.5')
    """
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _job(name: str, moved: bool) -> Job:
    raw = example(name)
    raw["data"] |= {"augment": {"flip": True}} if moved else {}
    return prepare(resolve(raw, {"budget": {"steps": STEPS}}), Path())


def _read(job: Job, method: Method) -> Iterator[str]:
    """What is read in some phase."""
    stretches = job.method.stretches()
    learned = any(one.relabels or _learns_labels(job, one) for one in stretches)
    if learned or method.rows == "real" or method.needs.labels:
        yield "labels"
    theirs = job.method.reads("teacher")
    if "logits" in theirs:
        yield "logits"
    besides = procedure(job.config.method)
    if theirs - LOGITS or (besides is not None and besides.asks):
        yield "features"
    elif job.method.reads("student") - LOGITS:
        yield "own features"
    if job.config.generator is not None:
        yield f"{job.config.generator.name} rows"
    if any(one.input_grad for one in stretches):
        yield "image gradients"


def _learns_labels(job: Job, stretch: Stretch) -> bool:
    if stretch.objective is None:
        return False
    weights = stretch.objective.weights
    batch = batch_maker(job, torch.device("cpu"), 0).batch(0, stretch)
    real = real_rows(job, batch, stretch.generated)  # which a generator may take the place of
    return weights["mixed"] > 0 or (weights["ce"] > 0 and real > 0)


def _asked_for(needs: Needs) -> Iterator[str]:
    """What a method says that it needs, but for what goes without saying."""
    told = needs._asdict()
    hidden = {"labels"}  # among what is read
    hidden |= {name for name in ("stages", "min_rows") if told[name] == 1}  # which all have
    hidden |= {"equal_stages"} if needs.equal_channels else set()
    for name, value in told.items():
        if value and name not in hidden:
            other = name.replace("_", " ") + ("" if value is True else " {}")
            yield WORDS.get(name, other).format(value)


def _trainings(job: Job) -> int:
    """How many networks a chain trains in turn, from the one behind the teacher to the student."""
    n, teacher = 1, job.config.teacher
    while teacher is not None and teacher.teacher is not None:
        n, teacher = n + 1, teacher.teacher
    return n


def _networks(job: Job) -> str:
    """How many are trained, and what else runs: parts, averages, teachers."""
    kinds = Counter(_kind(role) for role in job.method.roles.values())
    found = [str(1 + kinds.pop("network", 0))]
    found += [kind if n == 1 else f"{n} {_plural(kind)}" for kind, n in kinds.items()]
    if job.teacher is not None and needs_teacher(job.config.method):
        n = len(members(job.teacher))
        found.append("teacher" if n == 1 else f"{n} teachers")
    return " + ".join(found)


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("ch") else f"{kind}s"


def _kind(role: Role) -> str:
    """What a further network is called."""
    if role.weights == "ema":
        return "average"
    if role.weights == "shared":
        return "section"
    return "network" if role.after is None and role.upto is None else "branch"
