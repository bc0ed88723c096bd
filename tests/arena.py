"""Any registered method with small real networks: all that a step needs, and the step by parts."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from tiny import SIZE, shapes_of, task_of, tiny
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.methods.base import Method, methods
from fskd.methods.compose import join
from fskd.methods.needs import check_needs
from fskd.methods.plan import Given, Stretch
from fskd.methods.words import Term
from fskd.models.modes import in_mode
from fskd.models.taps import LOGITS, FeatureNet
from fskd.settings import OptimConfig
from fskd.teachers.base import Teacher
from fskd.teachers.ensemble import Ensemble
from fskd.train.alone import Alone
from fskd.train.step import Learner, ask
from fskd.types import Batch, Outputs, Progress, Shapes, Tools

K, N, CPU = 5, 20, torch.device("cpu")
FABRIC = Alone(CPU)
Stages = tuple[tuple[int, int, int], ...]

# Stem and stages of student and teacher; the most unlike first. The last three suit methods that
# need equal channels: depths differ, and in one of them map sizes, too.
PAIRS: dict[str, tuple[tuple[int, Stages], tuple[int, Stages]]] = {
    "uneven": ((3, ((7, 1, 1), (6, 2, 2), (9, 2, 1))), (4, ((10, 1, 1), (12, 2, 1)))),
    "wide": ((3, ((6, 1, 1), (7, 2, 1))), (4, ((9, 2, 2), (11, 2, 1)))),
    "narrow": ((8, ((12, 2, 1), (10, 1, 1))), (3, ((6, 1, 1), (9, 2, 2)))),
    "long": ((4, ((6, 1, 1), (8, 2, 1), (10, 2, 1))), (7, ((9, 1, 2), (11, 1, 1), (13, 2, 1)))),
    "deep": ((4, ((6, 1, 1), (9, 2, 1))), (4, ((6, 1, 2), (9, 2, 3)))),
    "deeper": ((3, ((7, 2, 1), (8, 1, 1), (6, 2, 2))), (3, ((7, 2, 3), (8, 1, 1), (6, 2, 1)))),
    "single": ((5, ((8, 2, 1),)), (5, ((8, 2, 4),))),
    "fine": ((4, ((7, 2, 1), (9, 2, 1))), (4, ((7, 1, 1), (9, 1, 2)))),
}
# Settings that make a step cheap, and that leave nothing out.
SETTINGS: dict[str, dict[str, Any]] = {
    "crd": {"n_negatives": 64, "feat_dim": 6},
    "fskd": {"kd_weight": 1.0},
}
# Methods that draw from the global generator, which the loop seeds in every step, and what.
DRAWS = {"kdgan": "labels"}


class Rows(NamedTuple):
    """How many rows of each kind; unlabelled ones for each view that a method needs."""

    real: int = 8
    generated: int = 0
    unlabelled: int = 3


def networks(pair: str, seed: int = 0) -> tuple[FeatureNet, FeatureNet]:
    """Student and teacher."""
    ours, theirs = PAIRS[pair]
    return tiny(ours[0], *ours[1], classes=K, seed=seed), tiny(
        theirs[0], *theirs[1], classes=K, seed=50 + seed
    )


def parts_of(names: str) -> list[tuple[str, Any]]:
    """Names and settings; KD+ takes the temperature of what it accompanies."""
    found = {n: methods.get(n).Settings(**SETTINGS.get(n, {})) for n in names.split("+")}
    others = [one for name, one in found.items() if name != "kdplus"]
    if "kdplus" in found and others:
        found["kdplus"] = methods.get("kdplus").Settings(
            temperature=others[0].objective().temperature
        )
    return list(found.items())


class Arena:
    """A method in one phase: networks, teacher, rows and the learner.

    Args:
        names: ``a`` or ``a+b``.
        pair: One of ``PAIRS``.
        phase: Number of the phase.
        nets: Student and teacher instead of those of the pair.
    """

    def __init__(
        self,
        names: str,
        pair: str,
        phase: int = -1,
        nets: tuple[FeatureNet, FeatureNet] | None = None,
    ) -> None:
        student, teacher = nets or networks(pair)
        self.joint = join(parts_of(names))
        wanted = max(method.needs.teachers for method in self.joint.methods.values())
        members = [teacher, *(networks(pair, i)[1] for i in range(1, max(wanted, 1)))]
        self.shapes: Shapes = shapes_of(student, teacher, N, seed=3, n_teachers=len(members))
        for name, method in self.joint.methods.items():
            check_needs(name, method.needs, self.shapes)
        self.joint.build(self.shapes)
        peers = [networks(pair, i)[0] for i in range(1, self.joint.n_students)]
        self.task = task_of(self.joint, [student, *peers], teacher)
        self.source = Ensemble(members) if len(members) > 1 else teacher
        self.teacher = Teacher(self.source, CPU)
        self.stretch: Stretch = self.joint.stretches()[phase]
        self.task.enter(self.stretch)

    @property
    def method(self) -> Method:
        """The first method."""
        return next(iter(self.joint.methods.values()))

    def begin(self) -> "Arena":
        """The phase begins, as in the loop."""

        @torch.no_grad()
        def asked(name: str, inputs: Tensor, taps: frozenset[str] = LOGITS) -> Outputs:
            if name == "teacher":
                return self.teacher.ask(inputs, taps)
            with in_mode(self.task.net(name), "eval"):
                return cast(Outputs, self.task.net(name)(inputs, taps))

        def passed() -> Iterator[Batch]:
            return iter([rows_of(self, Rows(8, 0, 0), seed=100 + i) for i in range(2)])

        tools = Tools(self.progress(0), asked, passed, torch.Generator().manual_seed(0))
        for voice in self.stretch.voices:
            self.joint.methods[voice.part].begin(tools)
        return self

    def progress(self, step: int = 3) -> Progress:
        """After the first steps, so that ramps have begun."""
        return Progress(self.stretch.name, step / 10, step, step // 2)

    def rows(self, rows: Rows | None = None, seed: int = 0, step: int = 3) -> Batch:
        """The rows of a step with views and relabelled."""
        wanted = rows or Rows(8, 4 if self.stretch.generated else 0)
        return self.finished(rows_of(self, wanted, seed), step)

    def finished(self, batch: Batch, step: int = 3) -> Batch:
        """Views and relabelled rows, drawn from the step."""
        net = self.task.net("student")

        @torch.no_grad()
        def guess(inputs: Tensor) -> Tensor:
            with in_mode(net, "batch"):
                return cast(Outputs, net(inputs, LOGITS)).logits

        rng = torch.Generator().manual_seed(step)
        batch = self.joint.views(batch, rng, self.stretch)
        if self.stretch.relabels:
            batch = self.joint.relabel(batch, guess, rng, self.stretch)
        if self.stretch.input_grad:
            batch = batch._replace(inputs=batch.inputs.detach().requires_grad_())
        return batch

    def known(self, batch: Batch) -> tuple[Given, ...]:
        """The teacher's answers."""
        (found,) = ask(self.teacher, batch, [self.stretch], FABRIC)
        return found

    def given(self, batch: Batch) -> list[Given]:
        """What every run gave."""
        return self.task.given(batch, self.known(batch), self.stretch)

    def terms(self, batch: Batch, given: Sequence[Given] | None = None) -> dict[str, Term]:
        """Terms of one step."""
        found = self.given(batch) if given is None else given
        if not DRAWS.keys().isdisjoint(self.joint.methods):
            torch.manual_seed(0)
        return self.joint(found, batch, self.progress(), self.stretch)

    def learner(self, **optim: Any) -> Learner:
        """What updates the task."""
        return Learner(self.task, self.stretch, OptimConfig(lr=0.02, **optim), FABRIC)

    def update(self, learner: Learner, seed: int) -> dict[str, Term]:
        """One update on rows of their own."""
        batch = self.rows(seed=seed, step=seed)
        return learner.update(batch, self.known(batch), self.progress(seed), 1.0)


def rows_of(arena: Arena, rows: Rows, seed: int) -> Batch:
    """Random images; generated rows have two parents."""
    rng = torch.Generator().manual_seed(seed)
    indices = torch.randperm(N, generator=rng)[: rows.real]
    n_views = arena.joint.unlabelled_views * rows.unlabelled * arena.stretch.unlabelled
    total = rows.real + n_views + rows.generated
    parts, start = {}, rows.real
    for name, n in {"unlabelled": n_views, "generated": rows.generated}.items():
        if n:
            parts[name] = slice(start, start := start + n)
    inputs = torch.randn(total, *SIZE, generator=rng)
    batch = Batch(inputs, arena.shapes.targets[indices], indices, parts)
    if not rows.generated:
        return batch
    share = torch.rand(rows.generated, 1, generator=rng)
    parents = torch.randint(K, (rows.generated, 2), generator=rng)
    return batch._replace(parents=parents, shares=torch.cat([share, 1 - share], 1))


def suits(name: str, pair: str) -> bool:
    """Whether a method accepts the networks."""
    try:
        Arena(name, pair)
    except SettingError:
        return False
    return True


def pairs_of(name: str) -> list[str]:
    """The three most unlike pairs that a method accepts."""
    return [pair for pair in PAIRS if suits(name, pair)][:3]


def own_terms(arena: Arena, terms: Mapping[str, Term]) -> dict[str, Term]:
    """Terms that are not the objective's."""
    return {n: term for n, term in terms.items() if n not in ("ce", "kd", "generated", "mixed")}


def leaves(given: Sequence[Given], keep: bool = False) -> list[Given]:
    """The same values as leaves that want a gradient.

    Args:
        given: What the runs of a step gave.
        keep: Whether they keep their graph to the images, where a method differentiates by those.
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor):
            if keep and x.requires_grad:
                x.retain_grad()
                return x
            return x.detach().clone().requires_grad_(True)
        return tuple(leaf(one) for one in x) if isinstance(x, tuple) else x

    return [
        Outputs(*map(leaf, one)) if isinstance(one, Outputs) else
        tuple(Outputs(*map(leaf, each)) for each in one)
        for one in given
    ]  # fmt: skip


def tensors(given: Given) -> list[Tensor]:
    """All maps of a run."""
    several = (given,) if isinstance(given, Outputs) else given
    taps = [tap for one in several for tap in one]
    flat = [x for tap in taps for x in (tap if isinstance(tap, tuple) else (tap,))]
    return [x for x in flat if isinstance(x, Tensor)]


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def twin(arena: Arena) -> Arena:
    """A copy that shares nothing."""
    found = copy.copy(arena)
    found.task = copy.deepcopy(arena.task)
    found.joint = found.task.method
    return found
