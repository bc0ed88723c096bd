"""``a+b``: methods that share passes and one objective, and what each phase of a run asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.methods.base import BareSettings, Method, Step, methods
from fskd.methods.objective import NAMES, Objective
from fskd.methods.plan import Given, Plan, Stretch, Voice
from fskd.methods.words import Phase, Player, Role, Term
from fskd.seeding import derive
from fskd.types import Batch, Outputs, Progress, Settings, Shapes

# Name and settings; the settings are of the method's own class, which the registry knows.
Part = tuple[str, Settings]
T = TypeVar("T")


class Joint(nn.Module):
    """The methods of a run and their one objective.

    Known from settings alone; ``build`` makes what depends on the networks.

    Args:
        made: Every method by name, not yet built.
        ema: Decay of an average of the student that is measured beside it; None for no such.
    """

    def __init__(self, made: Mapping[str, Method], ema: float | None = None) -> None:
        super().__init__()
        self._average = {} if ema is None else {"ema": Role(weights="ema", decay=ema)}
        # Those with several students come first: their labels reach all of them.
        self._names = tuple(sorted(made, key=lambda name: len(made[name].labelled), reverse=True))
        # Also in a plain dictionary, which knows their type; a step looks them up several times.
        self.methods = {name: made[name] for name in self._names}
        self.parts = nn.ModuleDict(self.methods)
        self.unit = frozenset(NAMES).union(*(method.unit for method in self.methods.values()))

    @property
    def roles(self) -> dict[str, Role]:
        """Further networks of all methods, and the average of the student that is asked for."""
        own = (method.roles for method in self.methods.values())
        return _union("role", (*own, self._average))

    @property
    def players(self) -> dict[str, Player]:
        """Who minimises what; ``main`` is there in any case."""
        own = (
            {who: _moved(part, one) for who, one in method.players.items()}
            for part, method in self.methods.items()
        )
        return {"main": Player(), **_union("player", own)}

    @property
    def n_students(self) -> int:
        """The student and its peers."""
        return 1 + sum(role.peer for role in self.roles.values())

    def reads(self, net: str) -> frozenset[str]:
        """Everything that is read of ``student`` or ``teacher`` in some phase."""
        runs = (run for stretch in self.stretches() for run in stretch.runs)
        mine = (run.taps for run in runs if run.net in (net, f"{net}s"))
        return frozenset().union(*mine)

    @property
    def unlabelled_views(self) -> int:
        """Views of each unlabelled row."""
        return max(method.needs.unlabelled for method in self.methods.values())

    def build(self, shapes: Shapes) -> "Joint":
        """Makes what depends on the networks, each method from a random stream of its own."""
        for name, method in self.methods.items():
            method.shapes = shapes
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(shapes.seed, "init", name))
                method.build(shapes)
        return self

    def stretches(self) -> tuple[Stretch, ...]:
        """Each method's initial phases in turn, then one joint main phase."""
        initial: list[Stretch] = []
        mains: list[tuple[str, Phase]] = []
        alone = len(self._names) == 1
        for name, method in self.methods.items():
            *first, main = method.phases
            for phase in first:
                label = phase.name if alone else f"{name}.{phase.name}"
                initial.append(self._stretch(label, [(name, phase)], phase.share / main.share))
            mains.append((name, main))
        return (*initial, self._stretch(mains[0][1].name if alone else "main", mains, 1.0))

    def _stretch(self, name: str, spoken: Sequence[tuple[str, Phase]], share: float) -> Stretch:
        objective = _joined(
            {
                part: own
                for part, phase in spoken
                if (own := self.methods[part].settings.objective().only(phase.objective))
            }
        )
        names = [part for part, _ in spoken]
        for part in names:
            if len(names) > 1 and type(self.methods[part]).relabel is not Method.relabel:
                others = " and ".join(name for name in names if name != part)
                accepted = f"{part} alone: its rows have labels of their own"
                raise SettingError("method", f"'{part}' beside {others}", accepted)
        plan, voices, labelled = Plan(), list[Voice](), list[int]()
        generated = objective is not None and objective.makes
        unlabelled = objective is not None and objective.asks
        for part, phase in spoken:
            method = self.methods[part]
            asked = method.passes if phase.passes is None else phase.passes
            runs = plan.add_all(asked)
            if objective is not None:
                labelled += [plan.labelled(n, runs) for n in method.labelled]
            kind = type(method)
            speaks = kind.terms is not Method.terms or phase.terms != "terms"
            flags = kind.relabel is not Method.relabel, speaks, kind.views is not Method.views
            voices.append(Voice(part, phase, runs, *flags))
            reads = speaks and method.rows == "base"
            generated, unlabelled = generated or reads, unlabelled or reads
            unlabelled = unlabelled or method.needs.unlabelled > 0
        labelled = list(dict.fromkeys(labelled))
        for number in labelled:
            plan.read(number, "logits")
        known = plan.net("teacher") if objective is not None and objective.asks else None
        if known is not None:
            plan.read(known, "logits")
        trains = (_inside(part, t) for part, phase in spoken for t in phase.trains)
        phases = [phase for _, phase in spoken]
        return Stretch(
            name,
            share,
            tuple(dict.fromkeys(trains)),
            all(phase.restart for phase in phases),
            min(phase.lr_scale for phase in phases),
            tuple(plan.runs),
            tuple(voices),
            objective,
            tuple(labelled),
            known,
            generated,
            unlabelled,
        )

    def views(self, batch: Batch, rng: torch.Generator, stretch: Stretch) -> Batch:
        """The batch with the views of the methods that have a say appended."""
        inputs, parts = [batch.inputs], dict(batch.parts)
        start = len(batch.inputs)
        for voice in (voice for voice in stretch.voices if voice.views):
            for name, rows in self.methods[voice.part].views(batch, rng).items():
                if name in parts:
                    raise ValueError(f"two methods name their views '{name}'")
                inputs.append(rows)
                parts[name] = slice(start, start := start + len(rows))
        if len(inputs) == 1:
            return batch
        return batch._replace(inputs=torch.cat(inputs), parts=parts)

    def forward(
        self, given: Sequence[Given], batch: Batch, progress: Progress, stretch: Stretch
    ) -> dict[str, Term]:
        """Terms of the objective and of the methods that have a say.

        Args:
            given: What each run of the stretch gave.
            batch: The batch.
            progress: Where training stands.
            stretch: The phase.
        """
        found = self._shared(given, batch, stretch)
        for voice in (voice for voice in stretch.voices if voice.speaks):
            method = self.methods[voice.part]
            if batch.count(method.rows) < method.needs.min_rows:
                continue
            outputs = {name: given[run] for name, run in voice.runs.items()}
            rows = batch.part(method.rows)
            whole = rows == slice(0, len(batch.inputs))
            seen = progress._replace(phase=voice.phase.name)
            own = getattr(method, voice.phase.terms)(
                Step(outputs, batch, seen, None if whole else rows)
            )
            if both := found.keys() & own.keys():
                raise ValueError(f"two methods name a term '{min(both)}'")
            found.update(own)
        return found

    def _shared(self, given: Sequence[Given], batch: Batch, stretch: Stretch) -> dict[str, Term]:
        if stretch.objective is None:
            return {}
        logits = [cast(Outputs, given[run]).logits for run in stretch.labelled]
        known = None if stretch.teacher is None else cast(Outputs, given[stretch.teacher]).logits
        if not logits:
            return {}
        weights = stretch.objective.weights
        terms = stretch.objective.terms(batch, logits, known)
        return {name: Term(value, weights[name]) for name, value in terms.items()}

    def relabel(
        self,
        batch: Batch,
        ask: Callable[[Tensor], Tensor],
        rng: torch.Generator,
        stretch: Stretch,
    ) -> Batch:
        """Rows and soft labels as the methods that have a say want them."""
        for voice in stretch.voices:
            batch = self.methods[voice.part].relabel(batch, ask, rng)
        return batch

    @property
    def measures(self) -> bool:
        """Whether some method measures more than the student."""
        return any(type(one).measured is not Method.measured for one in self.methods.values())

    def measured(self, given: Sequence[Given], batch: Batch, stretch: Stretch) -> dict[str, Tensor]:
        """Logits that are evaluated besides the student's."""
        found: dict[str, Tensor] = {}
        for voice in stretch.voices:
            outputs = {name: given[run] for name, run in voice.runs.items()}
            found |= self.methods[voice.part].measured(Step(outputs, batch, Progress()))
        return found


def join(parts: Sequence[Part], ema: float | None = None) -> Joint:
    """The methods of these names and settings; see ``Joint``."""
    made = {name: methods.get(name)(cast(BareSettings, own)) for name, own in parts}
    return Joint(made, ema)


def described(parts: Sequence[Part]) -> Joint:
    """The same, shared by all who look at it while settings are read, and never built."""
    return _described(
        tuple((name, methods.get(name), cast(BareSettings, own)) for name, own in parts)
    )


@lru_cache(maxsize=256)
def _described(parts: tuple[tuple[str, type[Method], BareSettings], ...]) -> Joint:
    # The class is part of what is looked up: a method that is registered anew is another one.
    return Joint({name: kind(own) for name, kind, own in parts})


def _inside(part: str, trains: str) -> str:
    """``method.head`` of a part is ``method.parts.<part>.head`` of the whole."""
    root, dot, rest = trains.partition(".")
    return f"method.parts.{part}{dot}{rest}" if root == "method" else trains


def _moved(part: str, player: Player) -> Player:
    return player._replace(trains=tuple(_inside(part, name) for name in player.trains))


def _union(kind: str, several: Iterable[Mapping[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for one in several:
        if both := found.keys() & one.keys():
            raise ValueError(f"two methods name a {kind} '{min(both)}'")
        found.update(one)
    return found


def _joined(objectives: Mapping[str, Objective]) -> Objective | None:
    """Labels as the first method wants them, soft targets as the first that has some.

    Raises:
        SettingError: If two methods' soft targets have different temperatures.
    """
    if not objectives:
        return None
    first = next(iter(objectives.values()))

    def owner(term: str) -> str | None:
        return next((n for n, one in objectives.items() if one.weights[term] > 0), None)

    weights = {"ce_weight": first.ce_weight}
    temperatures: dict[str, float] = {}
    for term in NAMES[1:]:
        name = owner(term)
        weights[f"{term}_weight"] = 0.0 if name is None else objectives[name].weights[term]
        if name is not None and term != "mixed":
            temperatures[name] = objectives[name].temperature
    if len(set(temperatures.values())) > 1:
        (one, t), (other, u) = temperatures.items()
        raise SettingError(
            f"method.{one}.temperature", f"{t:g} beside {u:g} of {other}", "one temperature"
        )
    temperature = next(iter(temperatures.values()), first.temperature)
    return Objective(**weights, temperature=temperature, label_smoothing=first.label_smoothing)
