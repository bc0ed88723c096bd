"""What every registered method must satisfy, whatever it matches.

Networks are stood in for by leaf tensors with the shapes of their taps, so that gradients can be
looked at where they leave the method.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fskd.methods.base import Method, Phase, methods
from fskd.registry import describe
from fskd.types import Batch, Outputs, Progress, Shapes, TapShapes

K, N = 5, 40
STAGES = ((8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2))
NET = TapShapes((K,), (32,), STAGES, STAGES)
NAMES = methods.names()
# Values that depend on the order or on the company of the rows, and why.
ORDER_DEPENDENT = {
    "crd": "negatives are drawn by position in the batch",
    "sskd": "equally ranked rows are cut in row order",
}


def build(name: str) -> Method:
    """The method with default settings, seeded so that equal calls give equal weights."""
    torch.manual_seed(0)
    cls = methods.get(name)
    settings = cls.Settings()
    students = (NET,) * cls.students_needed(settings)
    teacher = NET if any(phase.reads.teacher for phase in cls.phases_of(settings)) else None
    return cls(settings, Shapes(K, N, students, teacher, torch.arange(N) % K, (3, 8, 8)))


def make_batch(n_real: int, n_generated: int, seed: int = 0) -> Batch:
    """Random images with distinct positions; generated rows have two parents."""
    rng = torch.Generator().manual_seed(seed)
    indices = torch.randperm(N, generator=rng)[:n_real]
    inputs = torch.randn(n_real + n_generated, 3, 8, 8, generator=rng)
    if n_generated == 0:
        return Batch(inputs, indices % K, indices)
    share = torch.rand(n_generated, 1, generator=rng)
    parents = torch.randint(K, (n_generated, 2), generator=rng)
    return Batch(
        inputs, indices % K, indices, n_generated, parents, torch.cat([share, 1 - share], 1)
    )


def with_views(method: Method, batch: Batch) -> Batch:
    """The batch with the method's extra views appended."""
    views = method.views(batch, torch.Generator().manual_seed(0), Progress())
    return batch if views is None else batch._replace(inputs=torch.cat([batch.inputs, views]))


def make_outputs(read: frozenset[str], rows: int, seed: int, dtype: torch.dtype) -> Outputs:
    """Random leaves for the taps that are read; maps are not negative."""
    rng = torch.Generator().manual_seed(seed)

    def leaf(shape: tuple[int, ...], positive: bool = False) -> Tensor:
        x = torch.randn(rows, *shape, generator=rng)
        return (x.relu() if positive else x).to(dtype).requires_grad_(True)

    full = {
        "logits": leaf(NET.logits),
        "embedding": leaf(NET.embedding, True),
        "stages": tuple(leaf(shape, True) for shape in NET.stages),
        "pre": tuple(leaf(shape) for shape in NET.pre),
    }
    return Outputs(**{tap: full[tap] for tap in read})


def leaves(outputs: Outputs) -> list[Tensor]:
    """All tensors of the taps."""
    single = [tap for tap in (outputs.logits, outputs.embedding) if tap is not None]
    return [*single, *outputs.stages, *outputs.pre]


class Step:
    """One call of a method in one phase, on random taps."""

    def __init__(
        self,
        method: Method,
        phase: Phase,
        batch: Batch,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
    ) -> None:
        self.method, self.phase = method, phase
        self.batch = with_views(method, batch)
        rows, reads = len(self.batch.inputs), phase.reads
        n_students = method.students_needed(method.settings)
        self.students = tuple(
            make_outputs(reads.student, rows, 10 + i, dtype) for i in range(n_students)
        )
        self.teacher = make_outputs(reads.teacher, rows, 20, dtype)
        if scale != 1.0:
            self.students = tuple(map(self._extreme, self.students))
            self.teacher = self._extreme(self.teacher)

    def _extreme(self, outputs: Outputs) -> Outputs:
        """Logits of +-1e4, with the same gradient leaf."""
        if outputs.logits is None:
            return outputs
        logits = (outputs.logits.detach().sign() * 1e4).requires_grad_(True)
        return outputs._replace(logits=logits)

    @property
    def progress(self) -> Progress:
        """Start of the phase, after any warm-up's first steps."""
        return Progress(self.phase.name, 0.5, 10, 5)

    def terms(self) -> dict[str, Tensor]:
        """The method's losses."""
        return self.method(self.students, self.teacher, self.batch, self.progress)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum."""
        weights = self.method.weights(self.progress)
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def phases(name: str) -> tuple[Phase, ...]:
    """Phases under default settings."""
    cls = methods.get(name)
    return cls.phases_of(cls.Settings())


PHASES = [pytest.param(n, p, id=f"{n}-{p.name}") for n in NAMES for p in phases(n)]
GENERATED = [
    pytest.param(n, p, id=f"{n}-{p.name}") for n in NAMES for p in phases(n) if p.reads.generated
]


def trained(method: Method, phase: Phase) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The method's own parameters that the phase updates."""
    for part in phase.trains:
        root, _, path = part.partition(".")
        if root == "method":
            yield from method.get_submodule(path).named_parameters()


def check(terms: dict[str, Tensor], step: Step) -> None:
    """Finite scalars, all of them named in the weights."""
    assert terms.keys() <= step.method.weights(step.progress).keys()
    for name, value in terms.items():
        assert value.shape == (), name
        assert value.isfinite(), name


@pytest.mark.parametrize(("name", "phase"), PHASES)
class TestEveryPhase:
    """Holds in each phase of each method."""

    def test_losses_and_gradients(self, name: str, phase: Phase) -> None:
        """Finite, with gradients where something trains and none for the teacher."""
        method = build(name)
        step = Step(method, phase, make_batch(8, 4 if phase.reads.generated else 0))
        terms = step.terms()
        assert terms
        check(terms, step)
        step.total(terms).backward()
        for parameter_name, parameter in trained(method, phase):
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
        assert all(leaf.grad is None for leaf in leaves(step.teacher))
        if phase.reads.student:
            for student in step.students:
                grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
                assert grads
                assert all(grad.isfinite().all() for grad in grads)
                assert any(grad.abs().sum() > 0 for grad in grads)

    def test_frozen_submodules_get_no_gradient(self, name: str, phase: Phase) -> None:
        """A submodule that the phase does not train takes no part in backward."""
        method = build(name)
        step = Step(method, phase, make_batch(8, 0))
        step.total(step.terms()).backward()
        updated = {id(parameter) for _, parameter in trained(method, phase)}
        for parameter_name, parameter in method.named_parameters():
            if id(parameter) not in updated:
                assert parameter.grad is None, parameter_name

    def test_deterministic_and_state_round_trips(self, name: str, phase: Phase) -> None:
        """Equal states give equal values, whatever the global generator does."""
        first, second = build(name), build(name)
        batch = make_batch(8, 0)
        Step(first, phase, batch).terms()
        second.load_state_dict(first.state_dict())
        torch.manual_seed(1)
        expected = Step(first, phase, batch).terms()
        torch.manual_seed(2)
        actual = Step(second, phase, batch).terms()
        assert expected.keys() == actual.keys()
        for term, value in expected.items():
            assert torch.equal(value, actual[term]), term

    def test_extreme_logits(self, name: str, phase: Phase) -> None:
        """Logits of +-1e4 give finite terms and gradients."""
        step = Step(build(name), phase, make_batch(8, 0), scale=1e4)
        terms = step.terms()
        check(terms, step)
        step.total(terms).backward()
        for student in step.students:
            grads = [leaf.grad for leaf in leaves(student) if leaf.grad is not None]
            assert all(grad.isfinite().all() for grad in grads)

    def test_bfloat16_taps(self, name: str, phase: Phase) -> None:
        """Taps in bfloat16 are computed with in float32."""
        low = Step(build(name), phase, make_batch(8, 0), torch.bfloat16)
        terms = low.terms()
        check(terms, low)
        full = Step(build(name), phase, make_batch(8, 0))
        for term, value in full.terms().items():
            assert terms[term].dtype == torch.float32
            torch.testing.assert_close(terms[term], value, rtol=0.1, atol=0.02)

    def test_row_order(self, name: str, phase: Phase) -> None:
        """Real rows may come in any order."""
        if name in ORDER_DEPENDENT:
            pytest.skip(ORDER_DEPENDENT[name])
        batch, order = make_batch(8, 0), torch.arange(8).flip(0)
        step = Step(build(name), phase, batch)
        expected = step.terms()
        step.students = tuple(student.rows(order) for student in step.students)
        step.teacher = step.teacher.rows(order)
        step.batch = Batch(batch.inputs[order], batch.targets[order], batch.indices[order])
        step.method = build(name)
        for term, value in step.terms().items():
            torch.testing.assert_close(value, expected[term], rtol=1e-4, atol=1e-6)

    def test_one_row(self, name: str, phase: Phase) -> None:
        """A batch of one gives finite terms, perhaps fewer."""
        step = Step(build(name), phase, make_batch(1, 0))
        check(step.terms(), step)


@pytest.mark.parametrize(("name", "phase"), GENERATED)
class TestGeneratedRows:
    """Holds where a method reads generated rows."""

    def test_generated_rows_are_used(self, name: str, phase: Phase) -> None:
        """Their taps get a gradient."""
        step = Step(build(name), phase, make_batch(8, 4))
        terms = step.terms()
        check(terms, step)
        step.total(terms).backward()
        grads = [leaf.grad for leaf in leaves(step.students[0]) if leaf.grad is not None]
        assert any(grad[8:].abs().sum() > 0 for grad in grads)

    def test_without_real_rows(self, name: str, phase: Phase) -> None:
        """Terms that need labels vanish, the others stay."""
        step = Step(build(name), phase, make_batch(0, 6))
        terms = step.terms()
        assert terms
        assert "ce" not in terms
        check(terms, step)
        step.total(terms).backward()


@pytest.mark.parametrize("name", NAMES)
def test_description(name: str) -> None:
    """The first line of the docstring is one sentence, shown by ``--list``."""
    line = dict(describe(methods.package))[name]
    assert line.endswith(".")
    assert len(line) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_generated_rows_are_ignored_unless_read(name: str) -> None:
    """Label terms and real-row terms do not change when generated rows are appended unread."""
    for phase in phases(name):
        if phase.reads.generated:
            continue
        batch = make_batch(8, 0)
        expected = Step(build(name), phase, batch).terms()
        step = Step(build(name), phase, batch)
        base = torch.arange(8)
        extra = torch.cat([base, base[:4], torch.arange(8, len(step.batch.inputs))])
        step.students = tuple(student.rows(extra) for student in step.students)
        step.teacher = step.teacher.rows(extra)
        step.batch = step.batch._replace(inputs=step.batch.inputs[extra], n_generated=4)
        actual = step.terms()
        assert actual.keys() == expected.keys()
        for term, value in actual.items():
            torch.testing.assert_close(value, expected[term])


@pytest.mark.parametrize("name", NAMES)
def test_phases(name: str) -> None:
    """The last phase is ``main``; shares are positive; what is trained exists."""
    method = build(name)
    found = method.phases()
    assert found[-1].name == "main"
    for phase in found:
        assert phase.share > 0
        assert math.isfinite(phase.lr_scale)
        list(trained(method, phase))
    owned = {id(p) for group in method.param_groups() for p in group.params}
    assert owned == {id(p) for p in method.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_one_step_lowers_the_loss(name: str) -> None:
    """Moving the student's taps against the gradient lowers the weighted sum."""
    phase = phases(name)[-1]
    step = Step(build(name), phase, make_batch(8, 0))
    before = step.total(step.terms())
    before.backward()
    length = sum(
        leaf.grad.pow(2).sum().item()
        for student in step.students
        for leaf in leaves(student)
        if leaf.grad is not None
    )
    with torch.no_grad():
        for student in step.students:
            for leaf in leaves(student):
                if leaf.grad is not None:
                    leaf -= 1e-3 * before.detach() / length * leaf.grad
    if name == "crd":
        # The memories and the negatives have moved on; start again from the same state.
        step.method = build(name)
    assert step.total(step.terms()) < before
