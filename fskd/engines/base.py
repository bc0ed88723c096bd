"""What a sweep asks of an engine: start a run, say what became of it. Imports no torch."""

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from fskd.results.store import Result

if TYPE_CHECKING:
    from fskd.config import RunConfig, Runtime

TEACHER = "teacher"


class Task(NamedTuple):
    """One run of a sweep.

    Attributes:
        arm: What it is called in tables; ``TEACHER`` for runs that only make a teacher.
        config: Its settings, with the hashes of its inputs.
        key: Its key.
        teachers: Folders of the runs that make its teacher.
    """

    arm: str
    config: "RunConfig"
    key: str
    teachers: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return f"{self.config.label()}-{self.key}"

    @property
    def needs(self) -> frozenset[str]:
        """Keys of the runs that make its teacher."""
        return frozenset(folder.rpartition("-")[2] for folder in self.teachers)


class Place(NamedTuple):
    """Where a process carries out tasks.

    Attributes:
        runtime: Device and folders.
        threads: Of the CPU.
        mirror: Where finished runs are copied to and fetched from, or None.
    """

    runtime: "Runtime"
    threads: int
    mirror: str | None = None


class Outcome(NamedTuple):
    """What became of a task.

    Attributes:
        kind: ``made`` here; ``found``, since another process had finished it; ``busy``, since
            another process is making it; ``failed``; or ``lost`` with the process that made it.
        result: Of a finished run.
        error: One line about a failure.
        spoiled: The process should not be used again.
    """

    kind: Literal["made", "found", "busy", "failed", "lost"]
    result: Result | None = None
    error: str = ""
    spoiled: bool = False


class Engine(Protocol):
    """Carries out tasks side by side."""

    @property
    def slots(self) -> int:
        """How many tasks can go on at once now."""
        ...

    def start(self, task: Task) -> None:
        """Begins a task; called only while fewer than ``slots`` go on."""
        ...

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """What has ended; returns after ``timeout`` seconds if nothing does."""
        ...

    def close(self) -> None:
        """Abandons what goes on."""
        ...
