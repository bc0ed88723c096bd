"""What a protocol will cost: counts and times of its runs, by arm."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fskd.config import RunConfig
from fskd.protocol.schema import Run
from fskd.resolve import needs_teacher
from fskd.runs.calibrate import Planner
from fskd.runs.estimate import Cost, here
from fskd.runs.images import load_data
from fskd.runs.prepare import prepare
from fskd.runs.ranking import known_ranking
from fskd.runs.teacher import teacher_runs

COUNTS = ("steps", "student_rows", "teacher_queries")


class ArmPlan(NamedTuple):
    """All runs of one arm.

    Attributes:
        arm: Its name.
        runs: How many.
        counts: By name, the (least, largest) value of one run, or of one episode of it.
        unequal: Names of the counts in which it differs from most arms on some task.
        seconds: Time of all runs that are not finished; None if not calibrated.
    """

    arm: str
    runs: int
    counts: dict[str, tuple[int, int]]
    unequal: frozenset[str]
    seconds: float | None


class Plan(NamedTuple):
    """What is left to do of a protocol.

    Attributes:
        arms: The arms, in order.
        finished: Runs that have a result; None where the data are not on this machine.
        teachers: Teachers that have to be trained first.
        seconds: Time of everything that is left, teachers included; None if not calibrated.
        absent: Data sets that are not on this machine.
    """

    arms: list[ArmPlan]
    finished: int | None
    teachers: int
    seconds: float | None
    absent: list[str]


def make_plan(runs: Sequence[Run], planner: Planner, out: Path) -> Plan:
    """Counts of all runs, and time of those that are not finished.

    Args:
        runs: The runs of a protocol.
        planner: Measures times if it has a fabric.
        out: Folder of all runs.

    Raises:
        FskdError: One line about the first run that cannot be carried out.
    """
    costs = [planner.cost(run.config) for run in runs]
    absent = {run.config.data.name for run in runs if not here(run.config)}
    done = [run.config.data.name not in absent and _finished(run.config, out) for run in runs]
    left = [run.config for run, known in zip(runs, done, strict=True) if not known]
    teachers = [t for t in _teachers(left) if t.data.name in absent or not _finished(t, out)]
    seconds: list[float | None] = [None] * len(runs)
    total = None
    if planner.fabric is not None:
        seconds = [0.0 if d else planner.seconds(r.config) for r, d in zip(runs, done, strict=True)]
        total = sum(filter(None, seconds)) + sum(map(planner.seconds, teachers))
    unequal = _unequal(runs, costs)
    arms = []
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [i for i, run in enumerate(runs) if run.arm == arm]
        counts = {c: [getattr(costs[i], c) for i in mine] for c in COUNTS}
        spans = {c: (min(values), max(values)) for c, values in counts.items()}
        own = [s for i in mine if (s := seconds[i]) is not None]
        time = sum(own) if own else None
        arms.append(ArmPlan(arm, len(mine), spans, frozenset(unequal.get(arm, ())), time))
    return Plan(arms, None if absent else sum(done), len(teachers), total, sorted(absent))


def _finished(config: RunConfig, out: Path) -> bool:
    # Most runs are not, and to tell a key takes long.
    if not any(out.glob(f"{glob.escape(config.label())}-*/result.json")):
        return False
    return prepare(config, out).folder.load() is not None


def _teachers(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Every teacher that is made by a run, once, and the teachers of those."""
    found: dict[str, RunConfig] = {}
    for config in configs:
        if _chosen_by_file(config):
            continue
        made = teacher_runs(config)
        while made:
            found.update({run.model_dump_json(): run for run in made})
            made = tuple(above for run in made for above in teacher_runs(run))
    return list(found.values())


def _chosen_by_file(config: RunConfig) -> bool:
    """Whether the teacher would only choose examples, and a split file has done so already."""
    if config.teacher is None or needs_teacher(config.method) or not here(config):
        return False
    return known_ranking(config, load_data(config).train) is not None


def _unequal(runs: Sequence[Run], costs: Sequence[Cost]) -> dict[str, set[str]]:
    """By arm, the counts that are not those of most arms that are compared with it."""
    tasks: dict[tuple[object, ...], list[int]] = {}
    for i, (run, counts) in enumerate(zip(runs, costs, strict=True)):
        data = run.config.data
        task = (data.name, counts.n_train, data.split_seed, run.config.student, run.config.seed)
        tasks.setdefault(task, []).append(i)
    found: dict[str, set[str]] = {}
    for alike in tasks.values():
        for name in COUNTS:
            # An arm without teacher asks nothing; the others are compared among themselves.
            values = {i: v for i in alike if (v := getattr(costs[i], name))}
            usual = Counter(values.values()).most_common(1)
            for i, value in values.items():
                if value != usual[0][0]:
                    found.setdefault(runs[i].arm, set()).add(name)
    return found
