"""One task of a sweep in the process that carries it out; the process keeps what tasks share."""

from functools import lru_cache

import torch

from fskd.engines.base import TEACHER, Outcome, Place, Task
from fskd.engines.mirror import Mirror
from fskd.errors import BusyError, FskdError
from fskd.runs.runner import run
from fskd.runs.session import Session


def carry_out(task: Task, place: Place) -> Outcome:
    """Makes a run unless another process makes it or has made it; never raises.

    Args:
        task: The run.
        place: Where.
    """
    try:
        session, mirror = _equipment(place)
        session.made.discard(task.key)
        for folder in (*task.teachers, task.folder):
            if mirror is not None:
                mirror.fetch(session.out / folder)
        role = "teacher" if task.arm == TEACHER else "student"
        result = run(task.config, session, role=role, wait=False)
        if mirror is not None:
            mirror.keep(session.out / task.folder)
        return Outcome("made" if task.key in session.made else "found", result)
    except BusyError:
        return Outcome("busy")
    except Exception as error:  # networks of users may fail in any way
        plain = isinstance(error, FskdError)
        line = " ".join(str(error).split())
        line = line if plain else f"{type(error).__name__}: {line}"
        # After an error in the device or its libraries nothing else may work in this process.
        return Outcome("failed", error=line, spoiled=not plain)


@lru_cache(maxsize=1)
def _equipment(place: Place) -> tuple[Session, Mirror | None]:
    torch.set_num_threads(place.threads)
    return Session(place.runtime), None if place.mirror is None else Mirror(place.mirror)
