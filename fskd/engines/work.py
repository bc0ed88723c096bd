"""One task of a sweep in the process that carries it out; the process keeps what tasks share."""

from functools import lru_cache

import torch

from fskd.config import Runtime
from fskd.engines.base import TEACHER, Outcome, Task
from fskd.errors import BusyError, FskdError
from fskd.train.runner import run
from fskd.train.session import Session


def carry_out(task: Task, runtime: Runtime, threads: int) -> Outcome:
    """Makes a run unless another process makes it or has made it; never raises.

    Args:
        task: The run.
        runtime: Device and folders.
        threads: Of the CPU, for this process.
    """
    try:
        session = _session(runtime, threads)
        session.made.discard(task.key)
        role = "teacher" if task.arm == TEACHER else "student"
        result = run(task.config, session, role=role, wait=False)
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
def _session(runtime: Runtime, threads: int) -> Session:
    torch.set_num_threads(threads)
    return Session(runtime)
