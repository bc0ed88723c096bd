"""What a phase asks for: passes of several methods merged into runs, and who has a say."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fskd.methods.objective import Objective
from fskd.methods.words import Mode, Pass, Phase
from fskd.types import Outputs

Given = Outputs | tuple[Outputs, ...]


class Source(NamedTuple):
    """A map of an earlier run: its number, the tap, and the stage."""

    run: int
    tap: str
    stage: int


class Run(NamedTuple):
    """A pass as it is made, for all who asked for it.

    Attributes:
        net: As in ``Pass``.
        taps: Everything that somebody reads.
        source: Where its input is from; None for the batch.
        mode: As in ``Pass``.
        input_grad: As in ``Pass``.
    """

    net: str
    taps: frozenset[str]
    source: Source | None = None
    mode: Mode = "role"
    input_grad: bool = False

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked."""
        return self.net in ("teacher", "teachers")


class Voice(NamedTuple):
    """A method that has a say in a stretch.

    Attributes:
        part: The method.
        phase: Its phase there.
        runs: Which run each of its passes is.
        relabels: Whether it chooses rows and soft labels itself.
        speaks: Whether it has terms of its own.
        views: Whether it adds rows.
    """

    part: str
    phase: Phase
    runs: Mapping[str, int]
    relabels: bool = False
    speaks: bool = True
    views: bool = True


class Stretch(NamedTuple):
    """A phase of the whole run.

    Attributes:
        name: ``<method>.<phase>`` where only one of several methods has a say.
        share: As in ``Phase``.
        trains: As in ``Phase``, submodules of methods under ``method.parts``.
        restart: As in ``Phase``.
        lr_scale: As in ``Phase``.
        runs: Every pass once, those on the batch before those on maps.
        voices: Who has a say.
        objective: What is learned from labels and soft targets.
        labelled: Runs whose logits learn the labels, the student's first.
        teacher: The run whose logits are the soft targets.
        generated: Whether generated rows are read.
        unlabelled: Whether unlabelled rows are read.
    """

    name: str
    share: float
    trains: tuple[str, ...]
    restart: bool
    lr_scale: float
    runs: tuple[Run, ...]
    voices: tuple[Voice, ...]
    objective: Objective | None
    labelled: tuple[int, ...]
    teacher: int | None
    generated: bool
    unlabelled: bool

    @property
    def trained(self) -> bool:
        """Whether some network other than the teacher is run on the batch."""
        return any(not run.asks for run in self.runs)

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked."""
        return any(run.asks for run in self.runs)

    @property
    def relabels(self) -> bool:
        """Whether a method chooses rows and soft labels itself."""
        return any(voice.relabels for voice in self.voices)

    @property
    def input_grad(self) -> bool:
        """Whether some pass needs a gradient of the batch."""
        return any(run.input_grad for run in self.runs)


class Plan:
    """Passes merged: those of one network on one input in one mode are one run."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def add_all(self, passes: Iterable[Pass]) -> dict[str, int]:
        """Adds the passes of one method; which run each of them is."""
        found: dict[str, int] = {}
        for one in passes:
            source = None
            if one.on != "inputs":
                name, tap, *stage = one.on.split(".")
                source = Source(found[name], tap, int(stage[0]) if stage else 0)
                self.read(source.run, tap)
            found[one.name] = self._add(Run(one.net, one.taps, source, one.mode, one.input_grad))
        return found

    def net(self, name: str) -> int:
        """The run of a network on the batch, in its usual mode."""
        return self._add(Run(name, frozenset()))

    def labelled(self, name: str, found: Mapping[str, int]) -> int:
        """The run that learns labels: a method's pass, or a network in its usual mode."""
        number = found.get(name)
        usual = number is not None and self.runs[number].mode == "role"
        return number if number is not None and usual else self.net(name)

    def read(self, number: int, tap: str) -> None:
        """A tap of a run is read, too."""
        run = self.runs[number]
        self.runs[number] = run._replace(taps=run.taps | {tap})

    def _add(self, run: Run) -> int:
        for number, known in enumerate(self.runs):
            either = known.input_grad or run.input_grad
            if known._replace(taps=run.taps, input_grad=run.input_grad) == run:
                self.runs[number] = known._replace(taps=known.taps | run.taps, input_grad=either)
                return number
        self.runs.append(run)
        return len(self.runs) - 1
