"""The result of a run that is finished, found without building a network or starting a trainer."""

from pathlib import Path

from fskd.config import RunConfig
from fskd.results.store import Result, RunDir
from fskd.runs.prepare import NOTHING_GIVEN, Given, identify
from fskd.runs.session import Session


def finished(config: RunConfig, out: Path, given: Given = NOTHING_GIVEN) -> Result | None:
    """What the run has found, if it has been made.

    Args:
        config: The settings.
        out: Folder of all runs.
        given: Parts handed over from Python.

    Raises:
        FskdError: If the data, a checkpoint or the result cannot be read.
    """
    named, _ = identify(config, given)
    return RunDir(out / f"{named.label()}-{named.key()}").load()


def recall(
    config: RunConfig, session: Session, given: Given = NOTHING_GIVEN, role: str = "student"
) -> Result | None:
    """The same on all processes, with a line for who waits and its doubts; the first looks.

    Args:
        config: The settings.
        session: Shared by the runs of this process.
        given: Parts handed over from Python.
        role: What the network is for: ``student`` or ``teacher``.
    """
    found = finished(config, session.out, given) if session.main else None
    if found is not None:
        RunDir(Path(found.path)).clean()
    found = session.fabric.broadcast(found)
    if found is not None and found.key not in session.made:
        hint = " (--force repeats it)" if role == "student" else ""
        session.tell_once(f"{role} already finished: {found.path}{hint}")
    for line in [] if found is None else found.doubts:
        session.doubt(line)
    return found
